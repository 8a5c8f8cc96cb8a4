"""What the blocks of a network are given for one image, kept: a map for any pixel then costs one row of attention."""

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lookfar.blocks import block_info
from lookfar.diagnostics._undisturbed import inputs_of, undisturbed
from lookfar.diagnostics.adapters import TokenAttention, adapted
from lookfar.diagnostics.finding import blocks_of
from lookfar.diagnostics.maps import inner_block, key_size, map_kinds, query_size, why_no_maps
from lookfar.insertion.gated import block_name

MOST_PREFIX = 16  # class, distillation and register tokens of the networks in use: at most nine
WEIGHTS = 2**21  # numbers of all maps that are there at a time


@dataclass(frozen=True)
class Seen:
    """One call of a block and what it was given for an image.

    Attributes:
        name: Of its module in the network.
        block: Registered name.
        module: The block itself, in evaluation while it is asked.
        image_size: Height and width of the image.
        x: Its input ``(1, C, h, w)``, or tokens ``(1, C, n + h w)``; None where it has no maps.
        grid: Height and width of its keys.
        tokens: Height and width of the grid that tokens form; None where the input is a map.
        reason: Why there are no maps; an empty string where there are.
        call: Which of its calls this is, counted from 1.
        calls: How often the network calls it for an image, as a head that several levels of a pyramid share.
    """

    name: str
    block: str
    module: Any
    image_size: tuple[int, int]
    x: Tensor | None = None
    grid: tuple[int, int] = (0, 0)
    reason: str = ""
    tokens: tuple[int, int] | None = None
    call: int = 1
    calls: int = 1

    @property
    def label(self) -> str:
        """Its name, and which call it is where there are several."""
        return f"{self.name}, call {self.call} of {self.calls}".lstrip(", ") if self.calls > 1 else self.name

    @property
    def size(self) -> tuple[int, int]:
        """Of the grid of its queries, mostly that of its map; zeros where it has no maps."""
        if self.x is None:
            return 0, 0
        if self.tokens is not None:
            return self.tokens
        height, width = query_size(self.module, self.x.shape[2:])
        return height, width

    @property
    def kinds(self) -> tuple[str, ...]:
        """What its maps are where they are not heads of one, see :func:`lookfar.diagnostics.maps.map_kinds`."""
        return () if self.x is None else map_kinds(self.module)

    @property
    def prefix(self) -> int:
        """Class and register tokens before the grid: queries are none of them, keys may be."""
        return 0 if self.x is None or self.tokens is None else self.x.shape[2] - math.prod(self.tokens)

    def query(self, at: Sequence[int]) -> tuple[int, int]:
        """The position (y, x) on the block's map under a pixel (y, x) of the image."""
        y, x = (int((place + 0.5) * n / full) for place, n, full in zip(at, self.size, self.image_size))
        return y, x

    def weights(self, at: Sequence[int]) -> Tensor:
        """The weights of the query under a pixel, ``(heads, *grid)`` in float64 on the CPU."""
        y, x = self.query(at)
        row = self._rows(torch.tensor([y * self.size[1] + x]))[0, :, 0].double().cpu()
        return row[:, -math.prod(self.grid) :].unflatten(-1, self.grid)

    def outside(self, at: Sequence[int]) -> Tensor:
        """The share of a query's weight that goes to class and register tokens, ``(heads,)``."""
        y, x = self.query(at)
        row = self._rows(torch.tensor([y * self.size[1] + x]))[0, :, 0].double().cpu()
        return row[:, : row.shape[1] - math.prod(self.grid)].sum(-1)

    @functools.cached_property
    def mean(self) -> Tensor:
        """The mean of the weights of all queries, ``(heads, *grid)`` in float64 on the CPU; never all at once."""
        some, positions = max(WEIGHTS // max(self._numbers, 1), 1), math.prod(self.size)
        total = sum(self._rows(queries)[0].double().sum(1) for queries in torch.arange(positions).split(some))
        assert isinstance(total, Tensor)
        return (total / positions).cpu()[:, -math.prod(self.grid) :].unflatten(-1, self.grid)

    @property
    def _numbers(self) -> int:
        return self._rows(torch.tensor([0])).shape[1] * math.prod(self.grid)

    def _rows(self, queries: Tensor) -> Tensor:
        assert self.x is not None, self.reason
        with undisturbed(self.module):
            return self.module.attention(self.x, (queries + self.prefix).to(self.x.device))


def see(network: nn.Module, image: Tensor) -> list[Seen]:
    """Run a network on one image and keep what each of its blocks is given at each call, in the order of the modules.

    The network is left as it was: modes, random state, no hooks.

    Args:
        network: Any network with blocks of ours, inserted or its own; without one, with attention that
            :mod:`lookfar.diagnostics.adapters` knows; or a block, whose input is then the image.
        image: ``(C, H, W)`` or ``(1, C, H, W)``, as the network takes it.

    Raises:
        ValueError: No block in the network, an image of another form.

    >>> from lookfar import create_block
    >>> network = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), create_block("nonlocal", 16))
    >>> (seen,) = see(network, torch.rand(3, 17, 13))
    >>> seen.block, seen.size, seen.query((9, 4)), seen.weights((9, 4)).shape
    ('nonlocal', (8, 6), (4, 2), torch.Size([1, 8, 6]))
    """
    return see_with_output(network, image)[0]


def see_with_output(network: nn.Module, image: Tensor) -> tuple[list[Seen], Any]:
    """The same, and what the network gave for the image, a batch of one."""
    if not isinstance(image, Tensor):
        raise ValueError(f"want a tensor (C, H, W) as the network takes it, got {type(image).__name__}")
    image = image[0] if image.dim() == 4 and len(image) == 1 else image
    if image.dim() != 3:
        raise ValueError(f"want an image (C, H, W) as the network takes it, got {tuple(image.shape)}")
    network = adapted(network)
    names = blocks_of(network)
    if not names:
        raise ValueError("the network has no block of the registry to look from, and no attention of a known kind")
    device = next((p.device for p in network.parameters()), image.device)
    with undisturbed(network), inputs_of(network, names) as given, _convolved(network) as sizes:
        output = network(image[None].to(device))
    H, W = image.shape[1:]
    found = []
    for name in names:
        calls: list[Tensor | None] = [*given[name]] or [None]
        for number, x in enumerate(calls, 1):
            seen = _seen(name, network.get_submodule(name), x, (H, W), sizes)
            found.append(replace(seen, call=number, calls=len(calls)))
    return found, output


@contextmanager
def _convolved(network: nn.Module) -> Iterator[list[tuple[int, int]]]:
    """Inside, the sizes of the maps that convolutions give are kept; the hooks go afterwards."""
    sizes: list[tuple[int, int]] = []
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    with ExitStack() as hooks:
        for conv in convolutions:
            hooks.callback(conv.register_forward_hook(lambda _, args, y: sizes.append(tuple(y.shape[-2:]))).remove)
        yield sizes


def _seen(
    name: str, module: nn.Module, x: Tensor | None, of_image: tuple[int, int], sizes: list[tuple[int, int]]
) -> Seen:
    """One call; ``x`` is None where there was none."""
    try:
        block: Any = inner_block(module)
    except ValueError:  # inserted, and a class of the user's own
        return Seen(name, block_name(module), module, of_image, reason=why_no_maps(module))
    known, reason = block_info(block).name, why_no_maps(block)
    if x is None:
        return Seen(name, known, block, of_image, reason=getattr(block, "wrong", "") or "the network did not call it")
    if len(x) > 1:
        reason = reason or f"it sees {len(x)} windows of the image, each by itself"
    elif not reason and isinstance(block, TokenAttention):
        return _seen_tokens(name, block, x, of_image, sizes)
    elif not reason and (x.dim() != 4 or block_info(block).kind == "tokens"):
        reason = "its input is not a feature map (B, C, H, W)"
    if reason:
        return Seen(name, known, block, of_image, reason=reason)
    with undisturbed(block):
        keys = block.attention(x, torch.tensor([0], device=x.device)).shape[-1]
    grid = key_size(block, (x.shape[2], x.shape[3]))
    if grid is None or len(grid) != 2 or math.prod(grid) != keys:
        return Seen(name, known, block, of_image, reason=f"its {keys} keys form no grid")
    return Seen(name, known, block, of_image, x, (grid[0], grid[1]))


def _seen_tokens(
    name: str, block: TokenAttention, x: Tensor, of_image: tuple[int, int], sizes: list[tuple[int, int]]
) -> Seen:
    """A foreign attention, whose tokens lie on the grid of a convolution's map, behind class and register tokens."""
    known, N = block_info(block).name, x.shape[-1]
    fits = [size for size in sizes if 0 <= N - math.prod(size) <= MOST_PREFIX]
    if not fits:
        return Seen(name, known, block, of_image, reason=f"its {N} tokens are on no known grid of patches")
    size = max(fits, key=math.prod)
    with undisturbed(block):
        keys = block.attention(x, torch.tensor([0], device=x.device)).shape[-1]
    if keys == N:
        return Seen(name, known, block, of_image, x, size, tokens=size)
    grids = [grid for grid in sizes if math.prod(grid) == keys]
    if not grids:
        return Seen(name, known, block, of_image, reason=f"its {keys} keys form no grid")
    return Seen(name, known, block, of_image, x, grids[-1], tokens=size)
