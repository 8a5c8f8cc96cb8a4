"""Pictures of a query: the image, its map, what does not depend on it, and the two terms of its logits."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lookfar._tables import by_size
from lookfar.diagnostics import decompose
from lookfar.diagnostics.looking import panels
from lookfar.diagnostics.seeing import Seen, see
from lookfar.insight.inspecting import Inspected
from lookfar.insight.subjects import Subject
from lookfar.insight.two_steps import two_step_map
from lookfar.study.candidates import slug

QUERIES = ((0.25, 0.25), (0.5, 0.5), (0.75, 0.75))  # (y, x) in [0, 1], where a user names none


def write_pictures(
    one: Inspected, index: int, queries: Sequence[tuple[int, int]], folder: Path
) -> tuple[list[Path], str]:
    """A picture of each query of an image and each call of the block, a row a head; or why there is none.

    Args:
        one: The block.
        index: Number of the image.
        queries: Pixels ``(x, y)`` of the image as the network sees it; without any three are taken.
        folder: Where they go.

    Returns:
        The files; and why a call has none, an empty string where all have.

    Raises:
        ValueError: A pixel outside the image.
    """
    check_inside(one.subject, index, queries)
    data = one.subject.data
    image = data.val[index][0]
    H, W = image.shape[-2:]
    inputs = data.normalise(image[None])
    written, reason = [], ""
    for seen in see(one.subject.network, inputs):
        if seen.name != one.module:
            continue
        if seen.x is None:
            reason = seen.reason
            continue
        which, of_call = (f", call {seen.call} of {seen.calls}", f"-call{seen.call}") if seen.calls > 1 else ("", "")
        for x, y in queries or [(int(b * W), int(a * H)) for a, b in QUERIES]:
            path = folder / f"{slug(one.label)}-{_stem(data.val.names, index)}-{x}-{y}{of_call}.png"
            maps = maps_of(seen, (y, x))
            title = f"{one.label}{which}, {data.val.names[index]}, pixel {x},{y} of {by_size((W, H))}"
            panels(image, maps, (y, x), title.replace("×", "x"), seen.kinds).save(path)
            written.append(path)
    return written, reason


def check_inside(subject: Subject, index: int, queries: Sequence[tuple[int, int]]) -> None:
    """Raise a ValueError for a pixel ``(x, y)`` outside an image."""
    H, W = subject.data.val[index][0].shape[-2:]
    for x, y in queries:
        if not (0 <= x < W and 0 <= y < H):
            raise ValueError(f"--query {x},{y} lies outside the image of {W}×{H} pixels (x,y from 0,0)")


def _stem(names: Sequence[str], index: int) -> str:
    """The name of an image as part of a file's, another for each: without its ending, where that leaves it its own."""
    stems = [Path(str(name)).with_suffix("").as_posix() for name in names]
    alone = Counter(stems)[stems[index]] == 1
    return slug(stems[index] if alone else str(names[index]))


def maps_of(seen: Seen, at: tuple[int, int]) -> dict[str, np.ndarray]:
    """Maps ``(heads, h, w)`` of a pixel (y, x) by what they are called."""
    assert seen.x is not None
    found: dict[str, Tensor] = {"map of the query": seen.weights(at), "mean of all queries": seen.mean}
    y, x = seen.query(at)
    flat = torch.tensor([seen.prefix + y * seen.size[1] + x], device=seen.x.device)
    with torch.no_grad():
        parts = decompose(seen.module, seen.x)
        if parts is not None:
            found["pairwise alone"] = _on_grid(parts.pairwise_map(flat), seen)
            found["unary alone"] = _on_grid(parts.unary_map(), seen)
        both = two_step_map(seen.module, seen.x, (y, x))
        if both is not None:
            found["both steps"] = both
    return {name: of.double().cpu().numpy() for name, of in found.items()}


def _on_grid(maps: Tensor, seen: Seen) -> Tensor:
    """``(1, heads, 1, M)`` as ``(heads, h, w)``, without class and register tokens."""
    return maps[0, :, 0, -math.prod(seen.grid) :].unflatten(-1, seen.grid)
