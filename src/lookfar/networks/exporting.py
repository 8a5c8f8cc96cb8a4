"""A network leaves Python: to ONNX or as a program of ``torch.export``, for images of any number and size.

What was written is run at three other sizes before it is called done. Traps: PSANet as mmsegmentation has it asks
whether its shrink factor divides the map, so a program serves the sizes that answer alike: ``torch.export`` keeps that
as a guard and refuses the others, ONNX has no guards and would be silently wrong there.
"""

import copy
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lookfar.blocks.pointwise_spatial_attention import PointwiseSpatialAttention
from lookfar.networks.optimizing import optimize
from lookfar.networks.preprocessing import Inference, Preprocessing

Format = Literal["onnx", "torch-export"]
Shape = tuple[int, int, int]
ABOUT = "lookfar.json"  # what surrounds the network, in the file of torch.export; in ONNX a property of the model


@dataclass(frozen=True)
class Exported:
    """What was written and how it was checked.

    Attributes:
        path: The file.
        format: Its form.
        shapes: Batch, height and width that it was run at, beside those of its example.
        difference: The largest difference there, over the network's largest logit.
        limits: Which sizes it serves, where those are not all; empty where they are.
    """

    path: Path
    format: Format
    shapes: tuple[Shape, ...]
    difference: float
    limits: str = ""

    def __str__(self) -> str:
        sizes = ", ".join(f"{n} x {h}x{w}" for n, h, w in self.shapes)
        first = f"{self.path}: equal to {self.difference:.1e} of the largest logit at {sizes} ({self.format})"
        return f"{first}\n{self.limits}" if self.limits else first


def export(
    network: nn.Module,
    path: str | Path,
    *,
    format: Format = "onnx",
    size: tuple[int, int] = (136, 144),
    in_chans: int | None = None,
    tolerance: float = 1e-3,
) -> Exported:
    """Write a network as a program that needs no code of ours: images ``(B, in_chans, H, W)`` in, logits out.

    What is written is :func:`lookfar.optimize` of it; it is compared with the network itself. B, H and W are free.
    network is left as it was. The file appears when the check has passed.

    Args:
        network: Images in, logits of their size out, in eval.
        path: The file; one that is there is replaced.
        format: ``onnx`` for onnxruntime and its like, ``torch-export`` for ``torch.export.load(path).module()``.
        size: Height and width of the example; only where :attr:`Exported.limits` says so does it matter, and to
            interlaced attention, whose program is bound to an example of whole blocks: by default there are none.
        in_chans: Bands of the images; by default those that the network's first convolution takes.
        tolerance: The largest difference that passes, over the largest logit.

    Raises:
        ValueError: An unknown format, or one that is not installed; a network that cannot be exported for every size,
            or whose program differs.

    >>> from lookfar.networks import create_network
    >>> done = export(create_network("cgnet", 3, depths=(2, 2)), "cgnet.pt2", format="torch-export", size=(32, 40))
    >>> done.shapes
    ((1, 29, 47), (3, 40, 35), (2, 43, 64))
    >>> torch.export.load("cgnet.pt2").module()(torch.zeros(1, 3, 50, 31)).shape
    torch.Size([1, 3, 50, 31])
    """
    if format not in get_args(Format):
        raise ValueError(f"format must be {' or '.join(get_args(Format))}, got {format!r}")
    if min(size) < 16:
        raise ValueError(f"size must be 16x16 or larger, got {size[0]}x{size[1]}")
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: want the name of a file")
    if format == "onnx":
        _need_onnx()
    network = copy.deepcopy(network).cpu().float().eval()
    step, limits = _alike(network, size)
    bands = in_chans or _bands(network)
    shapes = _others(size, step)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with torch.no_grad(), _quiet():
            write, read = (_write_onnx, _read_onnx) if format == "onnx" else (_write_program, _read_program)
            try:
                images = torch.randn(2, bands, *size)
                write(optimize(network, images), images, partial, _about(network))
                program = read(partial)
            except OSError:
                raise
            except Exception as error:  # of the exporter's many classes
                raise ValueError(f"it cannot be exported for images of every size: {_first(error)}") from error
            difference = _difference(network, program, bands, shapes)
        if not difference <= tolerance:
            raise ValueError(
                f"its {format} program differs by {difference:.1e} of the largest logit: nothing is written"
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(path, format, shapes, difference, limits)


def _alike(network: nn.Module, size: tuple[int, int]) -> tuple[int, str]:
    """The step between sizes that a program serves alike, in pixels, and what is to be said of the others."""
    asks = [
        module
        for module in network.modules()
        if isinstance(module, PointwiseSpatialAttention) and module.variant == "mmseg" and module.shrink_factor > 1
    ]
    if not asks:
        return 8, ""
    stride = _stride(network, asks[0], size)
    factor = math.lcm(*(module.shrink_factor for module in asks))
    rows, columns = (math.ceil(side / stride) for side in size)
    names = ("height", "width")
    said = [f"its {name} {'by' if n % factor == 0 else 'not by'} {factor}" for name, n in zip(names, (rows, columns))]
    limits = (
        f"It serves images whose map, a side over {stride} rounded up, is divided as that of {size[0]}x{size[1]}: "
        f"{', '.join(said)}. PSANet as mmsegmentation has it computes otherwise for others."
    )
    return stride * factor, limits


def _stride(network: nn.Module, block: nn.Module, size: tuple[int, int]) -> int:
    """Of the map that a block sees."""
    seen: list[int] = []
    hook = block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[2]))
    try:
        network(torch.zeros(1, _bands(network), *size))
    finally:
        hook.remove()
    return 2 ** round(math.log2(size[0] / seen[0]))


def _others(size: tuple[int, int], step: int) -> tuple[Shape, ...]:
    """Smaller and larger ones, odd ones, other batches; whole steps away where a side counts in steps."""
    height, width = (8 * math.ceil(side / 8) for side in size)
    return (
        (1, height - 3, width + step - 1),
        (3, height + step, width - 5),
        (2, height + 2 * step - 5, width + 3 * step),
    )


def _bands(network: nn.Module) -> int:
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ValueError("the network has no convolution that says how many bands images have: give in_chans")
    return first.in_channels


def _about(network: nn.Module) -> str:
    """What surrounds the network, as JSON."""
    plain = {
        what: asdict(value) if isinstance(value, Preprocessing | Inference) else value
        for what in ("preprocessing", "inference", "class_names", "palette", "align_corners")
        if (value := getattr(network, what, None)) is not None
    }
    return json.dumps(plain)


def _write_program(network: nn.Module, images: Tensor, path: Path, about: str) -> None:
    axes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(network, (images,), dynamic_shapes=(axes,), strict=False)
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={ABOUT: about})


def _read_program(path: Path) -> Callable[[Tensor], Tensor]:
    with path.open("rb") as file:
        return torch.export.load(file).module()  # type: ignore[arg-type]


def _write_onnx(network: nn.Module, images: Tensor, path: Path, about: str) -> None:
    axes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    program = torch.onnx.export(network, (images,), dynamo=True, dynamic_shapes=(axes,), verbose=False, **names)
    assert program is not None
    program.model.metadata_props["lookfar"] = about
    program.save(str(path))


def _read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _difference(
    network: nn.Module, program: Callable[[Tensor], Tensor], bands: int, shapes: tuple[Shape, ...]
) -> float:
    """The largest over the largest logit; infinite where the program fails or gives another shape."""
    found = 0.0
    for batch, *size in shapes:
        images = torch.randn(batch, bands, *size)
        what = "the network"
        try:
            want = network(images)
            what = "its program"
            y = program(images)
        except Exception as error:
            why = _first(error)
            if "Guard failed" in why:  # something in the network was 1 for the example and is not here, or the reverse
                why = "it is bound to what the example's size makes of its maps; give another size, such as 136x144"
            raise ValueError(f"{what} fails on {batch} images of {size[0]}x{size[1]}: {why}") from error
        if y.shape != want.shape:
            return math.inf
        off = ((y - want).abs().max() / want.abs().max().clamp_min(1e-12)).item()
        found = max(found, math.inf if math.isnan(off) else off)  # max() of Python passes nan over
    return found


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"format='onnx' needs pip install lookfar[onnx]: {error}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own remarks, and with the caller's random state afterwards."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield


def _first(error: Exception) -> str:
    """The line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
