"""Where the weights of a query lie: how far away, on its own class, on borders between classes.

Distances are Euclidean, in positions of the map that the block sees. Where a block's keys are fewer than its positions,
a key lies at the centre of the cell that it stands for, and has the label that stands there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lookfar.diagnostics.maps import labels_at


class Places:
    """Coordinates and labels of queries and keys.

    Args:
        size: Of the map that the block sees, any number of axes.
        keys: The grid of its keys, see :func:`lookfar.diagnostics.key_size`.
        labels: ``(B, H, W)`` at any resolution, for maps of two axes.
        ignore: The void label.
        device: Of the maps.
    """

    def __init__(
        self,
        size: Sequence[int],
        keys: Sequence[int],
        labels: Tensor | None = None,
        *,
        ignore: int = 255,
        device: torch.device | str | None = None,
    ) -> None:
        self.queries = coordinates(size, size, device=device)  # (N, axes)
        self.keys = self.queries if tuple(keys) == tuple(size) else coordinates(keys, size, device=device)
        self.ignore = ignore
        self.labels: tuple[Tensor, Tensor] | None = None
        if labels is not None:
            (H, W), (h, w) = size, keys
            labels = labels.to(self.queries.device)
            self.labels = labels_at(labels, (H, W)), labels_at(labels, (h, w))
            self.boundary = boundaries(self.labels[1].view(-1, h, w), ignore=ignore).flatten(1).double()

    def per_query(self, rows: Tensor, queries: Tensor) -> dict[str, Tensor]:
        """Numbers of each query by itself.

        Args:
            rows: Their weights ``(B, h, Q, M)``.
            queries: Which they are, ``(Q,)``.

        Returns:
            By name, ``(B, h or 1, Q)``. ``label_mass`` and its chance are nan for void queries.
        """
        rows, B = rows.double(), len(rows)
        apart = torch.cdist(self.queries[queries], self.keys, compute_mode="donot_use_mm_for_euclid_dist")  # (Q, M)
        found = {
            "distance": (rows * apart).sum(-1),
            "distance_rms": (rows * apart.square()).sum(-1).sqrt(),
            "distance_uniform": apart.mean(-1).expand(B, 1, -1),
        }
        if self.keys is self.queries:
            found["self_weight"] = rows.gather(-1, queries.view(1, 1, -1, 1).expand(*rows.shape[:2], -1, 1))[..., 0]
        if self.labels is not None:
            of_queries, of_keys = self.labels[0][:, queries], self.labels[1]  # (B, Q), (B, M)
            own = (of_queries[:, :, None] == of_keys[:, None]).double()  # (B, Q, M)
            void = (of_queries == self.ignore)[:, None]
            found |= {
                "label_mass": (rows * own[:, None]).sum(-1).masked_fill(void, torch.nan),
                "label_chance": own.mean(-1)[:, None].masked_fill(void, torch.nan),
                "boundary_mass": (rows @ self.boundary[:, None, :, None]).squeeze(-1),
                "boundary_chance": self.boundary.mean(-1)[:, None, None].expand(-1, 1, len(queries)),
            }
        return found


def coordinates(grid: Sequence[int], size: Sequence[int], *, device: torch.device | str | None = None) -> Tensor:
    """Centres of the cells of a grid over a map of ``size``, in positions of the map, ``(cells, axes)`` in float64.

    >>> coordinates((1, 2), (2, 4)).tolist()
    [[0.5, 0.5], [0.5, 2.5]]
    """
    axes = [
        (torch.arange(n, device=device, dtype=torch.float64) + 0.5) * full / n - 0.5
        for n, full in zip(grid, size, strict=True)
    ]
    return torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], -1)


def boundaries(labels: Tensor, *, ignore: int = 255) -> Tensor:
    """Where a labelled position has a neighbour, beside, above or below it, of another class; void is no class.

    Shape: ``(B, H, W) -> (B, H, W)``, bool

    >>> boundaries(torch.tensor([[[0, 0, 1, 255, 2]]])).int().tolist()
    [[[0, 1, 1, 0, 0]]]
    """
    labelled, found = labels != ignore, torch.zeros_like(labels, dtype=torch.bool)
    for axis in (1, 2):
        n = labels.shape[axis]
        low, high = (labels.narrow(axis, start, n - 1) for start in (0, 1))
        both = labelled.narrow(axis, 0, n - 1) & labelled.narrow(axis, 1, n - 1)
        differ = (low != high) & both
        found.narrow(axis, 0, n - 1).logical_or_(differ)
        found.narrow(axis, 1, n - 1).logical_or_(differ)
    return found
