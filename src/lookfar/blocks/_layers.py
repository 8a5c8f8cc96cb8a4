"""What many blocks build from: layers by the number of spatial axes, pooling, zero starts."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypedDict, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar.ops._autograd import compiled_here
from lookfar.ops._layout import match_format
from lookfar.ops._rectified import rectified

CONV: dict[int, Callable[..., nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM: dict[int, Callable[..., nn.modules.batchnorm._BatchNorm]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
DROPOUT: dict[int, Callable[..., nn.Module]] = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Placement(TypedDict, total=False):
    """Where parameters lie and how precise they are: the last options of every block, handed on to every layer."""

    device: Any
    dtype: Any


Norm = Callable[..., nn.Module]
Dims = Literal[1, 2, 3]
Form = Literal["block", "published"]
M = TypeVar("M", bound=nn.Module)


_INSTANCE_NORM = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_SAME_NORMS = {cls: row for row in (BATCH_NORM, _INSTANCE_NORM) for cls in row.values()}


def norm_of(norm_layer: Norm, dims: int) -> Norm:
    """``norm_layer`` for maps of ``dims`` axes: ``nn.BatchNorm2d`` (or a partial of it) is then the 1-D or 3-D one."""
    if isinstance(norm_layer, partial):
        return partial(norm_of(norm_layer.func, dims), *norm_layer.args, **norm_layer.keywords)
    row = _SAME_NORMS.get(norm_layer) if isinstance(norm_layer, type) else None
    return norm_layer if row is None else row[dims]


def pool_stride(size: tuple[int, ...], stride: int) -> tuple[int, ...]:
    """Stride of pooling a map ``(*S)``: 1 along time (the first of three axes) and along axes too short for it."""
    time = len(size) == 3
    return tuple(1 if (time and axis == 0) or n < stride else stride for axis, n in enumerate(size))


def pooled_size(size: Sequence[int], stride: int) -> tuple[int, ...]:
    """The size of what :func:`max_pool` makes of a map ``(*S)``."""
    return tuple(n // s for n, s in zip(size, pool_stride(tuple(size), stride)))


def max_pool(x: Tensor, stride: int) -> Tensor:
    """Maxima of blocks of ``stride`` along each spatial axis of ``(B, C, *S)``; odd sizes are floored.

    Time, the first axis of three, is never pooled, and an axis shorter than ``stride`` stays as it is (a pool would
    leave nothing of it).
    """
    strides = pool_stride(tuple(x.shape[2:]), stride)
    if all(s == 1 for s in strides):
        return x
    if len(strides) == 1:  # as a map of one row: torch's own pool of sequences fixes their length in exported programs
        return F.max_pool2d(x.unsqueeze(2), (1, *strides), (1, *strides)).squeeze(2)
    return (F.max_pool2d if len(strides) == 2 else F.max_pool3d)(x, strides, strides)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map ``(B, C, *S)``, interpolated linearly, corners on corners."""
    return F.interpolate(x, tuple(size), mode=_LINEAR[x.dim() - 2], align_corners=True)


def only_on_images(dims: int, what: str, others: str) -> None:
    """Raise a ValueError where ``dims`` asks for other maps than ``what`` has a meaning on; ``others`` take them."""
    if dims != 2:
        raise ValueError(f"{what} works on maps (B, C, H, W), got {dims=}: {others}")


def zero_(module: M) -> M:
    """Set weight and bias to zero: a residual branch that ends in ``module`` starts as nothing."""
    for name in ("weight", "bias"):
        if (parameter := getattr(module, name, None)) is not None:
            nn.init.zeros_(parameter)
    return module


def zero_last(norm: nn.Module | None, project: nn.Module | None) -> None:
    """:func:`zero_` of the last layer of a branch that has parameters: the norm, or what stands before it."""
    if norm is not None and getattr(norm, "weight", None) is not None:
        zero_(norm)
    elif project is not None:
        zero_(project)


def normal_(module: M, std: float = 0.01) -> M:
    """Draw the weight from N(0, std^2) and set the bias to zero."""
    nn.init.normal_(cast(Tensor, module.weight), std=std)
    if module.bias is not None:
        nn.init.zeros_(cast(Tensor, module.bias))
    return module


def projection(
    form: Form, out_channels: int, channels: int, *, zero_init: bool, dims: Dims = 2, **dd: Any
) -> nn.Module | None:
    """P of a block ``x + P(published(x))``, a 1x1 convolution that starts at zero; None where ``form="published"``."""
    if form == "published":
        return None
    project = CONV[dims](out_channels, channels, 1, **dd)
    return zero_(project) if zero_init else project


def projected(block: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """``x + P(y)`` with the block's P, or the published y itself, in the memory format of x."""
    project = cast("nn.Module | None", block.project)
    return match_format(y if project is None else added(block, x, project(y)), x)


def gate(block: nn.Module, zero_init: bool, **dd: Any) -> nn.Parameter | None:
    """The factor of what a block adds to its input, 0 or 1 at the start; None where it adds to nothing."""
    return nn.Parameter(torch.full((1,), 0.0 if zero_init else 1.0, **dd)) if keeps_input(block) else None


def gated(gamma: nn.Parameter | None, y: Tensor) -> Tensor:
    """``gamma y`` in the precision of y, y itself where there is no gate."""
    return y if gamma is None else gamma.to(y.dtype) * y


def added(block: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """What a block gives: ``x + y``, or y alone where it was built with ``residual=False``.

    Args:
        block: Of kind context; ``@block`` has put its option ``residual`` there.
        x: Its input ``(B, C, *S)``.
        y: What it found, ``(B, C, *S)``, or ``(B, C, 1, ..)`` where it is the same at all positions.
    """
    return x + y if keeps_input(block) else match_format(y.to(x.dtype).expand_as(x), x)


def added_gated(block: nn.Module, x: Tensor, gamma: nn.Parameter | None, y: Tensor) -> Tensor:
    """:func:`added` of :func:`gated`, without a map for the product where the precisions allow it."""
    if gamma is not None and keeps_input(block) and x.dtype == y.dtype == gamma.dtype:
        return torch.addcmul(x, gamma, y)
    return added(block, x, gated(gamma, y).to(x.dtype))


def keeps_input(block: nn.Module) -> bool:
    """Whether a block adds its input, see :func:`added`."""
    return bool(getattr(block, "residual", True))


def activated(act: nn.Module, y: Tensor) -> Tensor:
    """``act(y)``, of a compiled ReLU without hooks by :func:`rectified`."""
    hooks = act._forward_hooks or act._forward_pre_hooks or act._backward_hooks or act._backward_pre_hooks
    return rectified(y) if type(act) is nn.ReLU and compiled_here() and not hooks else act(y)


def normed(norm: nn.Module | None, y: Tensor) -> Tensor:
    """``norm(y)`` in the memory format of ``y``, with the right gradient for a batch of one, see :func:`readable`."""
    if norm is None:
        return y
    if _may_misread(y) and [m for m in norm.modules() if isinstance(m, nn.modules.instancenorm._InstanceNorm)]:
        # of one image torch's instance norm on CPU misreads a channels_last gradient, whatever its input's strides
        return match_format(norm(torch.cat([y, y]))[:1], y)
    same = readable(norm, y)
    return norm(y) if same is y else match_format(norm(same), y)


def readable(norm: nn.Module, y: Tensor) -> Tensor:
    """``y``, copied where a batch norm could misread it or the gradient that comes back.

    On CPU torch's batch norm takes strides (C, 1, ..) of a single image, as a product of matrices leaves them, for
    plain ones if the other of input and gradient is plain. It never does where the input is a real channels_last map.
    ``tests/test_batch_norm_of_torch.py`` shows it with torch alone.
    """
    if _may_misread(y) and [m for m in norm.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]:
        return y.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)
    return y


def _may_misread(y: Tensor) -> bool:
    return not torch.jit.is_tracing() and torch.is_grad_enabled() and y.shape[0] == 1 and y.dim() > 3 and y.is_cpu


class ConvNorm(nn.Module):
    """A convolution that keeps the size, a normalisation and, where wanted, an activation.

    Without a normalisation the convolution has a bias.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        dilation: int = 1,
        bias: bool = False,
        norm_layer: Norm | None,
        act_layer: Norm | None = None,
        dims: Dims = 2,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        bias = bias or norm_layer is None
        self.conv = CONV[dims](channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=bias, **dd)
        self.norm = nn.Identity() if norm_layer is None else norm_of(norm_layer, dims)(out_channels, **dd)
        self.act = act_layer() if act_layer is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.conv(x))

    def after(self, y: Tensor) -> Tensor:
        """What follows the convolution, from its result."""
        y = normed(self.norm, y)  # one map less is held during the activation
        return activated(self.act, y)
