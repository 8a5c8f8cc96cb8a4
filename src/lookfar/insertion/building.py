"""The block for a place: which constructor, how many channels, and whether it needs a gate to enter as the identity."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lookfar.blocks import BlockInfo, block_info, create_block
from lookfar.insertion.dry_run import bit_equal, untouched
from lookfar.insertion.gated import Gated, block_name
from lookfar.insertion.hanging import Record
from lookfar.insertion.layouts import Layout

KINDS = ("context", "tokens")


def known_block(block: Any) -> BlockInfo | None:
    """The facts of a block by name, class or module; None for a class or module that is not ours.

    Raises:
        ValueError: No block has the name.
    """
    try:
        return block_info(block)
    except ValueError:
        if isinstance(block, str):
            raise
        return None


def info_of(block: Any) -> BlockInfo | None:
    """The facts of a block that is to be inserted, as :func:`known_block` finds them.

    Raises:
        ValueError: No block has the name, or its kind is not one that keeps the shape.
    """
    info = known_block(block)
    if info is None:
        return None
    if info.kind == "layer":
        raise ValueError(
            f"{info.name} is of kind layer: it takes the place of a convolution, as in lookfar.replace(network, "
            f"{info.name!r}, at='layer4.*.conv2')"
        )
    if info.kind not in KINDS:
        raise ValueError(
            f"{info.name} is of kind {info.kind}: only blocks of kind context, and on tokens of kind tokens, keep the "
            "shape of their input"
        )
    return info


def build(
    block: Any,
    info: BlockInfo | None,
    place: str,
    maps: Sequence[Tensor],
    layout: Layout,
    *,
    raw: bool,
    position: str,
    shared: bool,
    options: dict[str, Any],
) -> nn.Module:
    """A block for ``place``, with its record; gated where it is not residual by nature.

    Args:
        block: Name, class or module.
        info: As :func:`info_of` gives it.
        place: Where it will stand.
        maps: Its inputs, one for each call.
        layout: How the maps come from the place's output.
        raw: Without a gate.
        position: For the record.
        shared: For the record.
        options: For the constructor.
    """
    on_meta = maps[0].is_meta
    if on_meta:  # built and tried on the CPU, then moved there
        maps = [random_like(x, device="cpu") for x in maps]
    x = maps[0]
    channels = x.shape[-1 if layout.kind == "tokens" else 1]
    dd: dict[str, Any] = {"device": x.device, "dtype": x.dtype}
    if isinstance(block, nn.Module):
        if options:
            raise TypeError(f"a module that is already built takes no options, got {', '.join(options)}")
        if getattr(block, "inserted", None) is not None:
            raise ValueError(f"this {block_name(block)} has been inserted already: copy it, or remove it there first")
        module = block
    elif info is not None:
        if info.kind != "tokens":
            options = _with_dims(info, options, x.dim() - 2, place, x)
        module = create_block(info.name, channels, **dd, **options)
    else:
        takes = inspect.signature(block).parameters
        module = block(channels, **{k: v for k, v in dd.items() if k in takes}, **options)
        module = module.to(**dd)

    _check_runs(module, place, maps)
    adds = info is not None and info.residual and getattr(module, "residual", True)
    meant = adds and (module is block or options.get("zero_init") is False)
    if not raw and not meant and (not _is_residual(info) or not _is_identity(module, x)):
        module = Gated(module, **dd)
    if on_meta:
        module = module.to("meta")
    what = info.name if info is not None else path_of(block)
    module.inserted = Record(  # type: ignore[assignment]
        what, dict(options), None if module is block else channels, position, layout, shared=shared
    )
    return module


def _with_dims(info: BlockInfo, options: dict[str, Any], dims: int, place: str, x: Tensor) -> dict[str, Any]:
    if "dims" in info.options:
        return {"dims": dims, **options}
    if dims != 2:
        raise ValueError(
            f"{info.name} takes maps (B, C, H, W), {place} gives {tuple(x.shape)}: nonlocal and others with the option "
            "dims take them"
        )
    return options


def _check_runs(module: nn.Module, place: str, maps: Sequence[Tensor]) -> None:
    name = block_name(module)
    for x in {tuple(x.shape): x for x in maps}.values():
        try:
            with untouched(module), torch.no_grad():
                y = module.eval()(x)
        except Exception as error:
            raise ValueError(f"{name} does not run on the output of {place}, {tuple(x.shape)}: {error}") from error
        if not isinstance(y, Tensor) or y.shape != x.shape:
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"{name} gives {got} for {tuple(x.shape)}: only a block that keeps the shape can be inserted"
            )


def _is_residual(info: BlockInfo | None) -> bool:
    return info is None or info.residual


def _is_identity(module: nn.Module, like: Tensor) -> bool:
    """Whether the block returns its input: asked with random numbers, since a host's features may be zero."""
    x = random_like(like, device=like.device)
    with untouched(module), torch.no_grad():
        return bit_equal(module.eval()(x), x)


def random_like(like: Tensor, *, device: Any) -> Tensor:
    """The same random numbers whenever it is asked."""
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(0), device="cpu")
    return noise.to(device=device, dtype=like.dtype)


def path_of(block: Any) -> str:
    """``package.module:Class`` of a class, a partial of one, or a module."""
    cls = type(block) if isinstance(block, nn.Module) else getattr(block, "func", block)
    return f"{cls.__module__}:{getattr(cls, '__qualname__', type(cls).__name__)}"
