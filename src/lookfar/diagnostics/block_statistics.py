"""What the maps of a block are like, in numbers, over images: plain, and weighted by what the block adds to each place.

They describe, and decide nothing: maps that depend on the query by every number here can be exchanged for a plain
average at no loss. What is lost is measured by taking something away, :func:`lookfar.diagnostics.ablations`.

A weight of a query is |F(x)_i|^2, the square of what the block adds there: most queries of an image often get nothing.
At initialisation maps are near uniform, and a network's numbers are to be held against those.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lookfar._tables import by_kind, map_names, table
from lookfar.blocks import block_info
from lookfar.diagnostics import spread
from lookfar.diagnostics._runs import not_called
from lookfar.diagnostics._undisturbed import Batches, inputs_of, pairs, undisturbed
from lookfar.diagnostics.adapters import adapted
from lookfar.diagnostics.decomposition import NO_DOT_PRODUCT, Decomposition, decompose
from lookfar.diagnostics.finding import find_block
from lookfar.diagnostics.geometry import Places
from lookfar.diagnostics.maps import inner_block, key_size, map_kinds, query_size, why_no_maps
from lookfar.diagnostics.replacing import is_branch
from lookfar.diagnostics.sums import MapSums, cosines, directions
from lookfar.ops.attention import attention_weights

WEIGHTS = 2**21  # numbers of all maps of a batch that are there at a time

NOTHING_ADDED = "the block adds nothing to its input"
NO_ADDITION = "what the block gives is not of its input's shape: nothing is added to it"

UNITS = {
    "contribution": "|F(x)| / |x|",
    "input_cosine_distance": "between features, 0 to 1",
    "output_cosine_distance": "between weighted sums of values, 0 to 1",
    "cosine_distance": "between maps, all pairs, 0 to 1/2",
    "similarity": "cosine between maps of different queries",
    "jensen_shannon": "nats, all pairs",
    "mutual_information": "nats that a map tells of its query",
    "shared_energy": "share that one map explains",
    "output_residual": "share of the output that is lost with the mean map",
    "entropy": "nats",
    "entropy_normalised": "of ln M",
    "effective_keys": "keys",
    "max_weight": "",
    "self_weight": "",
    "logit_deviation": "standard deviation over keys",
    "pairwise_energy": "of the logits",
    "unary_energy": "of the logits",
    "unary_share": "of the logits' energy",
    "kl_joint_unary": "nats",
    "effective_rank": "maps, of the sampled queries",
    "stable_rank": "maps, of the sampled queries",
    "rank_90": "maps, of the sampled queries",
    "distance": "positions",
    "distance_rms": "positions",
    "distance_uniform": "positions, were all keys alike",
    "label_mass": "share on the query's own class",
    "label_chance": "were all keys alike",
    "label_lift": "times chance",
    "boundary_mass": "share on borders of classes",
    "boundary_chance": "were all keys alike",
    "boundary_lift": "times chance",
}  # in the order of the table
_OF_DOT_PRODUCTS = ("logit_deviation", "pairwise_energy", "unary_energy", "unary_share", "kl_joint_unary")
_OF_DISTRIBUTIONS = (
    *("jensen_shannon", "mutual_information", "entropy", "entropy_normalised", "effective_keys", "max_weight"),
    *("self_weight", "distance", "distance_rms", "label_mass", "label_lift", "boundary_mass", "boundary_lift"),
)
_OF_PLACES = ("self_weight", "distance", "distance_rms", "distance_uniform")
_OF_LABELS = ("label_mass", "label_chance", "label_lift", "boundary_mass", "boundary_chance", "boundary_lift")
# why a number may be missing of maps that have it
_WHY_NAN = {
    "contribution": "the input is zero",
    "input_cosine_distance": "the input is zero",
    "similarity": "a single query",
    "jensen_shannon": "a single query",
    "entropy_normalised": "a single key",
    "self_weight": "its keys are not its positions",
    "unary_share": "all logits of a query are equal",
    "label_mass": "no labelled query",
    "label_chance": "no labelled query",
    "label_lift": "no labelled query",
    "boundary_lift": "no border of classes",
}


@dataclass(frozen=True)
class Statistic:
    """One number of a block, image by image.

    Attributes:
        plain: ``(images, heads)``, or ``(images, 1)`` where heads have it in common; nan where it means nothing.
        weighted: The same with queries weighted by what the block adds there; None where it knows no queries.
        reason: Why numbers are nan; an empty string where none is.
    """

    plain: Tensor
    weighted: Tensor | None = None
    reason: str = ""

    @property
    def mean(self) -> Tensor:
        """Over the images that have the number, by head."""
        return self.plain.nanmean(0)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation over these images, by head; nan of a single one."""
        return _deviation(self.plain)


@dataclass(frozen=True)
class Statistics(Mapping[str, Statistic]):
    """All numbers of a block by name, in a fixed order; as text, a table.

    Attributes:
        block: Registered name.
        numbers: By name.
        unweighted: Why weighted numbers are nan; an empty string where they are not.
        kinds: What the maps are where they are not heads of one, as ``("pairwise", "unary")``: each has all heads.
    """

    block: str
    numbers: dict[str, Statistic]
    unweighted: str = ""
    kinds: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Statistic:
        return self.numbers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def map_names(self) -> tuple[str, ...]:
        """What each map is called, as ``"head 0"`` or ``"pairwise"``; a single one has an empty name."""
        return map_names(self.kinds, self["similarity"].plain.shape[1])

    def kinds_of(self, number: Statistic) -> list[tuple[str, slice]]:
        """Name and columns of what a mean may be taken over: the heads of each kind.

        All columns, under an empty name, where maps have the number in common or none has it.
        """
        columns = number.plain.shape[1]
        return by_kind(self.kinds if columns > 1 and not number.plain.isnan().all() else (), columns)

    def __str__(self) -> str:
        rows: list[list[str | float | None]] = []
        for name, of in self.items():
            weighted = None if of.weighted is None else of.weighted.nanmean(0)
            columns = of.plain.shape[1]  # one where maps have the number in common
            for column, which in enumerate(map_names(self.kinds if columns > 1 else (), columns)):
                cells = [of.mean[column], of.deviation[column], None if weighted is None else weighted[column]]
                numbers = [None if c is None or c.isnan() else round(float(c), 5) for c in cells]
                label = f"{name}, {which}" if which else name
                rows.append([label, *numbers, of.reason if numbers[0] is None else UNITS[name]])
        images = len(next(iter(self.values())).plain)
        headers = [f"{self.block}, {images} image{'s' * (images != 1)}", "mean", "± images", "weighted", ""]
        note = f"\nweighted: {self.unweighted}" if self.unweighted else ""
        return table(headers, rows) + note


def statistics(
    network: nn.Module,
    batches: Batches | Tensor,
    block: str | None = None,
    *,
    ignore: int = 255,
    sampled: int = 64,
    seed: int = 0,
) -> Statistics:
    """What the maps of a block are like over images, plain and weighted by what it adds to each position.

    Never are the maps of all queries there at once. The network is left as it was: modes, random state, no hooks.

    Args:
        network: Any network with one of our blocks, or a block, whose inputs are then the images.
        batches: Images ``(B, C, H, W)``, as the network takes them, or ``(images, labels (B, H, W))``; one batch or
            several, such as ``data.val_batches(8)``. With labels there are numbers on classes and their borders.
        block: Name of the block in the network; not needed where there is one. Of a block that is called several
            times in a pass, the last call counts.
        ignore: The void label.
        sampled: Queries that pairs and ranks are computed on.
        seed: Which they are.

    Raises:
        ValueError: No such block, one without weights over positions, or without any batch.

    >>> from lookfar import create_block
    >>> found = statistics(create_block("nonlocal", 16, zero_init=False), torch.randn(2, 16, 6, 5))
    >>> found["similarity"].plain.shape, list(found)[:2]
    (torch.Size([2, 1]), ['contribution', 'input_cosine_distance'])
    >>> bool(found["effective_keys"].mean < 30)
    True
    """
    network = adapted(network)
    name = find_block(network, block)
    module = network.get_submodule(name)
    found: list[Statistics] = []
    with undisturbed(network):
        for images, labels in pairs(network, batches):
            if module is network:
                x = images
            else:
                with inputs_of(network, [name]) as seen:
                    network(images)
                if not seen[name]:
                    raise ValueError(not_called(network, name))
                x = seen[name][-1]
            _check_whole(name, module, x, images)
            found.append(of_batch(module, x, labels, ignore=ignore, sampled=sampled, seed=seed))
    if not found:
        raise ValueError("want at least one batch of images, got none")
    return _joined(found)


def of_batch(
    module: nn.Module,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    ignore: int = 255,
    sampled: int = 64,
    seed: int = 0,
) -> Statistics:
    """:func:`statistics` of a block on one batch of its own inputs, in the mode that it is in.

    Args:
        module: A block, bare or in an inserted gate.
        x: ``(B, C, *S)``.
        labels: ``(B, H, W)`` at any resolution.
        ignore: The void label.
        sampled: Queries that pairs and ranks are computed on.
        seed: Which they are.
    """
    if reason := why_no_maps(module):
        raise ValueError(f"no attention maps: {reason}")
    block: Any = inner_block(module)
    info, y = block_info(block), (block if is_branch(module) else module)(x)
    same = isinstance(y, Tensor) and y.shape[2:] == x.shape[2:] == query_size(block, x.shape[2:])
    if info.kind == "tokens" or not same:
        raise ValueError(f"{info.name}: want a block whose queries are the positions of its input")
    weights, contribution, unweighted = _weights(x, y, x.new_zeros(()) if is_branch(module) else x)
    values: Tensor = block.values(x)
    places, no_places = _places(block, x, values.shape[2], labels, ignore)
    sums, parts, N = MapSums(weights, values), decompose(module, x), x[0, 0].numel()
    some = max(WEIGHTS // max(values.shape[:3].numel(), 1), 1)
    for queries in torch.arange(N, device=x.device).split(some):
        rows = _rows(block, parts, x, queries)
        sums.add(rows, queries, places.per_query(rows, queries) if places else None)
    found = sums.result() | _of_sample(block, x, weights, spread.sample_queries(N, sampled, seed=seed))
    flaws = sums.why_no_distribution()
    flawed = torch.tensor([[bool(flaw) for flaw in of_image] for of_image in flaws], device=x.device)
    found["jensen_shannon"] = found["jensen_shannon"].masked_fill(flawed, torch.nan)
    if parts is not None:
        found |= parts.numbers(weights, sums.mean_map, found["entropy"])
    found["input_cosine_distance"] = cosines(directions(weights, x.double().flatten(2).transpose(1, 2)[:, None]))[1]

    reasons = dict(_WHY_NAN) | dict.fromkeys(_OF_DOT_PRODUCTS if parts is None else (), NO_DOT_PRODUCT)
    reasons |= dict.fromkeys((*_OF_PLACES, *_OF_LABELS) if no_places else (), no_places)
    flaw = _first(flaw for of_image in flaws for flaw in of_image)
    reasons |= dict.fromkeys(_OF_DISTRIBUTIONS if flaw else (), flaw)
    numbers = {"contribution": _statistic(contribution[:, None], None, unweighted or reasons["contribution"])}
    for name in UNITS:
        if name != "contribution" and (labels is not None or name not in _OF_LABELS):
            plain, weighted = found.get(name, torch.full_like(found["similarity"], torch.nan))
            numbers[name] = _statistic(plain, weighted, reasons.get(name, "not defined for these maps"))
    return Statistics(info.name, numbers, unweighted, map_kinds(block))


def _statistic(plain: Tensor, weighted: Tensor | None, reason: str) -> Statistic:
    return Statistic(
        plain.cpu(), None if weighted is None else weighted.cpu(), reason if bool(plain.isnan().any()) else ""
    )


def _check_whole(name: str, module: nn.Module, x: Tensor, images: Tensor) -> None:
    """Raise a ValueError for an attention that sees windows of images: its numbers would be of windows."""
    if is_branch(module) and len(x) != len(images):
        raise ValueError(f"{name} sees {len(x)} sequences of {len(images)} images: windows, want whole images")


def _weights(x: Tensor, y: Tensor, before: Tensor) -> tuple[Tensor, Tensor, str]:
    """Of queries, plain and by what is added, ``(2, B, N)``; contributions ``(B,)``; why the second are nan.

    ``before`` is what y holds of x: x, or nothing in a branch.
    """
    plain = torch.full((len(x), x[0, 0].numel()), 1 / x[0, 0].numel(), dtype=torch.float64, device=x.device)
    if x.shape != y.shape:
        return torch.stack([plain, plain * torch.nan]), plain[:, 0] * torch.nan, NO_ADDITION
    added = (y.double() - before.double()).flatten(2).square().sum(1)
    total = added.sum(1)
    contribution = (total / x.double().flatten(1).square().sum(1)).sqrt()
    why = NOTHING_ADDED if (total == 0).any() else ""
    return torch.stack([plain, added / total[:, None]]), contribution, why


def _places(block: nn.Module, x: Tensor, keys: int, labels: Tensor | None, ignore: int) -> tuple[Places | None, str]:
    size = tuple(x.shape[2:])
    grid = key_size(block, size)
    if grid is None or math.prod(grid) != keys:
        return None, f"its {keys} keys form no grid"
    if labels is not None and (len(size) != 2 or labels.dim() != 3):
        raise ValueError(f"want labels (B, H, W) for maps (B, C, H, W), got {tuple(labels.shape)}, {tuple(x.shape)}")
    return Places(size, grid, labels, ignore=ignore, device=x.device), ""


def _rows(block: Any, parts: Decomposition | None, x: Tensor, queries: Tensor) -> Tensor:
    """The maps of some queries; where they are a softmax of dot products, without projecting x again."""
    if parts is None:
        return block.attention(x, queries)
    return attention_weights(parts.q[..., queries, :], parts.k, scale=parts.scale)


def _of_sample(block: Any, x: Tensor, weights: Tensor, queries: Tensor) -> dict[str, Tensor]:
    """What needs the rows of some queries side by side, ``(W, B, h)``."""
    queries = queries.to(x.device)
    rows, some = block.attention(x, queries), weights[..., queries]
    numbers = spread.ranks(rows, some.nan_to_num(1))
    numbers = {name: value.where(some.isfinite().all(-1)[..., None], torch.nan) for name, value in numbers.items()}
    return numbers | {"jensen_shannon": spread.jensen_shannon(rows, some, weights.square().sum(-1))}


def _joined(found: list[Statistics]) -> Statistics:
    """Of several batches, one after the other."""
    numbers = {}
    for name in found[0]:
        parts = [one[name] for one in found]
        weighted = None if parts[0].weighted is None else torch.cat([p.weighted for p in parts])  # pyright: ignore
        numbers[name] = Statistic(torch.cat([p.plain for p in parts]), weighted, _first(p.reason for p in parts))
    return Statistics(found[0].block, numbers, _first(one.unweighted for one in found), found[0].kinds)


def _first(reasons: Any) -> str:
    return next(filter(None, reasons), "")


def _deviation(values: Tensor) -> Tensor:
    there = ~values.isnan()
    count = there.sum(0)
    off = (values - values.nanmean(0)).where(there, 0)
    off = off.where(off.abs() > 1e-12 * values.nanmean(0).abs(), 0)  # rounding
    return torch.where(count > 1, (off.square().sum(0) / (count - 1).clamp(min=1)).sqrt(), torch.nan)
