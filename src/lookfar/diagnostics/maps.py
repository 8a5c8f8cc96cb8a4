"""Does a block's map depend on the query, and what does it follow?

Maps are (B, h, Q, M): a row holds the weights of one query over M keys. Nothing here needs more than O(Q M).
:func:`map_similarity` is the plain mean cosine between *different* queries, which reads 1 for one map for all; GCNet's
cosine distance counts each query with itself and halves: (1 - ((Q - 1) s + 1) / Q) / 2. It says nothing of what a block
makes of its maps: unrelated soft maps are alike too, and a fixed filter has other maps for every query; what remains
without them does (:mod:`lookfar.diagnostics.replacing`). :func:`own_class_share` is
DNL's within-category idea among the labelled keys: times the weight on labelled keys it is the literature's label mass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lookfar.blocks import block_info


def inner_block(module: nn.Module) -> nn.Module:
    """The registered block itself, out of the gate that :func:`lookfar.insert` puts around some."""
    try:
        block_info(module)
    except ValueError:
        inside = getattr(module, "block", None)
        if not isinstance(inside, nn.Module):
            raise
        return inner_block(inside)
    return module


def why_no_maps(module: nn.Module) -> str:
    """Why a block has no weights over positions, in words for a report; an empty string where it has them.

    >>> from lookfar import create_block
    >>> why_no_maps(create_block("squeeze_excitation", 32))
    'squeeze_excitation has no weights over positions'
    """
    try:
        info = block_info(inner_block(module))
    except ValueError:
        return "not a block of the registry"
    if wrong := getattr(inner_block(module), "wrong", ""):  # of a foreign attention that was computed again
        return wrong
    # an option can take a block out of its class's kind: the instance knows best
    attends = getattr(inner_block(module), "attends", info.attends)
    if attends == "maps":
        return f"{info.name} mixes through nodes or several stages: no single weight from a query to a position"
    if attends == "none":
        return f"{info.name} has no weights over positions"
    return ""


@torch.no_grad()
def attention_maps(module: nn.Module, x: Tensor, queries: Tensor | None = None) -> Tensor:
    """The weights of some queries over all keys.

    Args:
        module: A block whose mathematics has weights over positions, bare or in an inserted gate.
        x: The block's input (B, C, *S).
        queries: Flat positions (Q,); all N when None.

    Returns:
        ``(B, h, Q, M)``; M is N unless the block sub-samples its keys, see :func:`key_size`.

    Raises:
        ValueError: The block has no such weights; the message says what it has instead.

    >>> from lookfar import create_block
    >>> maps = attention_maps(create_block("nonlocal", 16), torch.randn(1, 16, 5, 4), torch.tensor([0, 7]))
    >>> maps.shape
    torch.Size([1, 1, 2, 20])
    """
    reason = why_no_maps(module)
    if reason:
        raise ValueError(f"no attention maps: {reason}")
    return inner_block(module).attention(x, queries)  # pyright: ignore[reportCallIssue]


def key_size(module: nn.Module, size: Sequence[int]) -> tuple[int, ...] | None:
    """The grid that a block's keys form on a map of ``size``, as the block reports it; None where they form none.

    A block whose keys are not the map's positions has ``key_grid(size)``; the others need not say anything.

    >>> from lookfar import create_block
    >>> key_size(create_block("nonlocal", 16, subsample=2), (9, 6))
    (4, 3)
    """
    key_grid = getattr(inner_block(module), "key_grid", None)
    return tuple(size) if key_grid is None else key_grid(size)


def query_size(module: nn.Module, size: Sequence[int]) -> tuple[int, ...]:
    """The grid that a block's queries form on a map of ``size``: the map's own, but for blocks with a stride.

    >>> from lookfar import create_block
    >>> query_size(create_block("local_relation", 16, stride=2), (9, 6))
    (5, 3)
    """
    query_grid = getattr(inner_block(module), "query_grid", None)
    return tuple(size) if query_grid is None else query_grid(size)


def map_kinds(module: nn.Module) -> tuple[str, ...]:
    """What a block's maps are where it adds several that are not heads of one; empty for the others.

    Such a block has ``map_kinds``; of each kind there are as many maps as there are heads, and they stand together.

    >>> from lookfar import create_block
    >>> map_kinds(create_block("disentangled_nonlocal", 16)), map_kinds(create_block("nonlocal", 16, heads=2))
    (('pairwise', 'unary'), ())
    """
    kinds = tuple(getattr(inner_block(module), "map_kinds", ()))
    return kinds if len(kinds) > 1 else ()


def map_similarity(maps: Tensor) -> Tensor:
    """Mean cosine between the maps of different queries, ``(B, h, Q, M) -> (B, h)``.

    1: the same map for every query. Exact in O(Q M): sum_{i != j} a_i.a_j = |sum_i a_i|^2 - Q for unit rows.
    Rows of zeros have no direction and are left out; with fewer than two rows left the result is nan.

    >>> same, other = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)
    >>> map_similarity(torch.stack([same, other])[None])
    tensor([[1., 0.]], dtype=torch.float64)
    """
    total, count = unit_sum(maps)
    return similarity_from_sums(total, count)


def unit_sum(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the rows scaled to length 1, ``(B, h, M)``, and how many have a length, ``(B, h)``: sums of chunks add."""
    rows = maps.double()
    length = rows.norm(dim=-1, keepdim=True)
    return (rows / length.where(length > 0, 1)).sum(-2), (length[..., 0] > 0).sum(-1)


def similarity_from_sums(total: Tensor, count: Tensor) -> Tensor:
    """Mean pairwise cosine from what :func:`unit_sum` gave."""
    n = count.double()
    pairs = n * (n - 1)
    return torch.where(pairs > 0, (total.square().sum(-1) - n) / pairs.clamp(min=1), torch.nan)


def query_independent_part(maps: Tensor) -> Tensor:
    """The mean map over queries, ``(B, h, Q, M) -> (B, h, M)``: what a block that ignored the query could use.

    >>> query_independent_part(torch.eye(2)[None, None])
    tensor([[[0.5000, 0.5000]]])
    """
    return maps.mean(-2)


def labels_at(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (B, H, W) at the centres of a coarser grid, ``(B, h*w)``; nearest, so that no class is invented.

    >>> labels_at(torch.arange(16).view(1, 4, 4), (2, 2))
    tensor([[ 5,  7, 13, 15]])
    """
    H, W = labels.shape[-2:]
    y, x = (
        ((torch.arange(n, device=labels.device) + 0.5) * full / n).long() for n, full in zip(size, (H, W), strict=True)
    )
    return labels[:, y[:, None], x].flatten(1)


def own_class_share(
    maps: Tensor, query_labels: Tensor, key_labels: Tensor, *, ignore: int = 255
) -> tuple[Tensor, Tensor]:
    """The share of a query's weight on keys of its own class, and what it would be by chance.

    Void keys are left out of both and the rest renormalised; the query itself counts, as in the literature.

    Args:
        maps: Weights (B, h, Q, M).
        query_labels: (B, Q).
        key_labels: (B, M), see :func:`labels_at`.
        ignore: The void label.

    Returns:
        Share (B, h, Q) and chance (B, Q). nan for void queries, and for rows with negative weights, where a share
        has no meaning.

    >>> labels = torch.tensor([[0, 0, 1, 1]])
    >>> share, chance = own_class_share(torch.tensor([[[[0.6, 0.3, 0.1, 0.0]]]]), torch.tensor([[0]]), labels)
    >>> round(share.item(), 2), chance.item()
    (0.9, 0.5)
    """
    valid = key_labels != ignore
    own = (query_labels[:, :, None] == key_labels[:, None]) & valid[:, None]  # (B, Q, M)
    chance = own.double().mean(-1) / valid.double().mean(-1)[:, None]
    rows = maps.double() * valid[:, None, None]
    share = (rows * own[:, None]).sum(-1) / rows.sum(-1)
    void = query_labels == ignore
    return share.masked_fill(void[:, None] | (maps < 0).any(-1), torch.nan), chance.masked_fill(void, torch.nan)
