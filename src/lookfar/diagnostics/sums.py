"""What maps add up to, some queries at a time: no more is held than the rows that are given, and sums of their size.

Maps are (B, h, Q, M) as in :mod:`lookfar.diagnostics.maps`. All numbers are functions of sums over queries, each taken
with several weightings of the queries at once (W of them, each summing to 1), in float64; rows may come in any order
and in any portions.

GCNet's cosine distance is the mean of (1 - cos) / 2 over all pairs, a query with itself included: 0 for one map,
(1 - 1/N) / 2 for maps without overlap. Rows of zeros have no direction and are left out of it.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

SUMS_TO_ONE = 1e-3  # how far the sum of a row may be from 1 in half precision

BOTH_SIGNS = "weights of both signs are not a distribution"
OTHER_SUMS = "weights that do not sum to 1 are not a distribution"
NOT_FINITE = "weights that are not finite"
OF_NO_MAP = ("distance_uniform", "label_chance", "boundary_chance")  # what maps are compared with


class MapSums:
    """Takes in rows of maps, and gives the numbers that follow from all of them.

    Args:
        weights: Of the queries, ``(W, B, N)``; each row sums to 1.
        values: What the maps mix, ``(B, h, M, E)``; without them nothing is said of the output.
    """

    def __init__(self, weights: Tensor, values: Tensor | None = None) -> None:
        self.weights = weights.double()
        self.values = None if values is None else values.double()
        self._totals: dict[str, Tensor] = {}
        self._names: dict[str, None] = {}
        self._origin: Tensor | None = None
        self._keys = 0

    def add(self, rows: Tensor, queries: Tensor, more: Mapping[str, Tensor] | None = None) -> None:
        """Take in the maps ``(B, h, Q, M)`` of some queries ``(Q,)``.

        Args:
            rows: Their weights.
            queries: Which queries they are; each is given once.
            more: Further numbers of each query by name, ``(B, h or 1, Q)``, to be averaged; nan leaves a query out.
        """
        rows, w = rows.double(), self.weights[..., queries]  # (W, B, Q)
        self._keys = rows.shape[-1]
        self._plus("map", _over_queries(w, rows))
        self._plus("square", _mean(w, rows.square().sum(-1)))
        self._directions("map", w, rows)
        off = (rows.sum(-1) - 1).abs().amax(-1)
        negative, infinite = (rows < 0).any(-1).any(-1), ~rows.isfinite().all(-1).all(-1)
        for name, flag in (("negative", negative), ("infinite", infinite), ("unequal", off > SUMS_TO_ONE)):
            self._totals[name] = self._totals.get(name, torch.zeros_like(flag)) | flag
        for name, numbers in {**per_query(rows), **(more or {})}.items():
            self._names[name] = None
            there = ~numbers.isnan()
            self._plus(f"of {name}", _mean(w, numbers.where(there, 0)))
            self._plus(f"counted {name}", _mean(w, there.double()))
        if self.values is not None:
            self._output(w, rows @ self.values)

    def _output(self, w: Tensor, mixed: Tensor) -> None:
        """Sums of the weighted sums ``(B, h, Q, E)``, from an origin nearby: their spread may be tiny beside them."""
        origin = self._origin = mixed[:, :, :1] if self._origin is None else self._origin
        self._plus("output square", _mean(w, mixed.square().sum(-1)))
        self._plus("output", _over_queries(w, mixed - origin))
        self._plus("output spread", _mean(w, (mixed - origin).square().sum(-1)))
        self._directions("output", w, mixed.transpose(1, 2).flatten(2).unsqueeze(1))  # of all heads side by side

    def _directions(self, name: str, w: Tensor, rows: Tensor) -> None:
        for part, total in directions(w, rows).items():
            self._plus(f"{name} {part}", total)

    def _plus(self, name: str, value: Tensor) -> None:
        self._totals[name] = self._totals[name] + value if name in self._totals else value

    @property
    def mean_map(self) -> Tensor:
        """``(W, B, h, M)``."""
        return self._totals["map"]

    def why_no_distribution(self) -> list[list[str]]:
        """For every image and head, ``[B][h]``, why its rows are no distributions; an empty string where they are."""
        flags = (self._totals[name].tolist() for name in ("infinite", "negative", "unequal"))
        words = (NOT_FINITE, BOTH_SIGNS, OTHER_SUMS)
        return [
            [next((word for word, flag in zip(words, of_head) if flag), "") for of_head in zip(*of_image)]
            for of_image in zip(*flags)
        ]

    def result(self) -> dict[str, Tensor]:
        """The numbers by name, ``(W, B, h or 1)``; those of distributions are nan where rows are none."""
        t = self._totals
        found = {name: t[f"of {name}"] / t[f"counted {name}"] for name in self._names}
        entropy = found["entropy"]
        found["mutual_information"] = (torch.special.entr(t["map"]).sum(-1) - entropy).clamp_min(0)  # but for rounding
        for kind in ("label", "boundary"):
            if f"{kind}_mass" in found:
                found[f"{kind}_lift"] = found[f"{kind}_mass"] / found[f"{kind}_chance"]
        none = t["negative"] | t["infinite"] | t["unequal"]
        found = {n: v if n in OF_NO_MAP else v.masked_fill(none, torch.nan) for n, v in found.items()}
        cosines = {f"{name}{what}": value for name in ("map ", "output ") for what, value in self._cosines(name)}
        found["similarity"], found["cosine_distance"] = cosines["map similarity"], cosines["map distance"]
        found["shared_energy"] = t["map"].square().sum(-1) / t["square"]
        if self.values is not None:
            left = t["output spread"] - t["output"].square().sum(-1)
            found["output_residual"] = (left.clamp(min=0) / t["output square"]).sqrt()
            found["output_cosine_distance"] = cosines["output distance"]
        return found

    def _cosines(self, name: str) -> list[tuple[str, Tensor]]:
        parts = {p: self._totals[name + p] for p in ("direction", "mass", "masses") if name + p in self._totals}
        return list(zip(("similarity", "distance"), cosines(parts))) if parts else []


def per_query(rows: Tensor) -> dict[str, Tensor]:
    """Numbers of each row of weights ``(B, h, Q, M)`` by itself, ``(B, h, Q)``; in nats where they are entropies.

    >>> found = per_query(torch.tensor([[[[0.5, 0.5, 0.0, 0.0]]]]).double())
    >>> {name: round(value.item(), 3) for name, value in found.items()}
    {'entropy': 0.693, 'entropy_normalised': 0.5, 'effective_keys': 2.0, 'max_weight': 0.5}
    """
    entropy = torch.special.entr(rows).sum(-1)
    return {
        "entropy": entropy,
        # the weight on a single key has no choice
        "entropy_normalised": entropy / math.log(rows.shape[-1]) if rows.shape[-1] > 1 else entropy * torch.nan,
        "effective_keys": entropy.exp(),
        "max_weight": rows.amax(-1),
    }


def directions(weights: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """Sums from which :func:`cosines` follow.

    Args:
        weights: Of some queries, ``(W, B, Q)``.
        rows: Their vectors, ``(B, h, Q, M)``.
    """
    length = rows.norm(dim=-1)
    pointed = length > 0
    unit = rows / length.where(pointed, 1).unsqueeze(-1)
    return {
        "direction": _over_queries(weights, unit),  # (W, B, h, M)
        "mass": _mean(weights, pointed.double()),
        "masses": _mean(weights.square(), pointed.double()),
    }


def cosines(sums: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weighted mean cosine between different queries, and GCNet's distance over all pairs, from sums over queries.

    >>> found = cosines(directions(torch.full((1, 1, 4), 0.25), torch.eye(4)[None, None]))
    >>> [value.item() for value in found]  # four maps without overlap
    [0.0, 0.375]
    """
    square, mass, masses = sums["direction"].square().sum(-1), sums["mass"], sums["masses"]
    pairs = mass.square() - masses
    some = pairs > 1e-12 * mass.square()
    similarity = torch.where(some, (square - masses) / pairs.where(some, 1), torch.nan)
    return similarity, (1 - square / mass.square()) / 2


def _over_queries(weights: Tensor, rows: Tensor) -> Tensor:
    """``(W, B, Q), (B, h, Q, M) -> (W, B, h, M)``."""
    return (weights[:, :, None, None] @ rows).squeeze(-2)


def _mean(weights: Tensor, numbers: Tensor) -> Tensor:
    """``(W, B, Q), (B, h, Q) -> (W, B, h)``."""
    return (weights[:, :, None] * numbers).sum(-1)
