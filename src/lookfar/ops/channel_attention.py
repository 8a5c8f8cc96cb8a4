"""Attention between channels: z_c = sum_d softmax_d(scale x_c . x_d) x_d.

The authors' scale of -1 gives most weight to the least similar channels.

Traps: the authors write softmax(rowmax(E) - E), which is softmax(-E), since the row's maximum cancels; softmax(E) is
another function. Similarities are sums over all N positions and reach 1e5: in half precision another channel wins, so
they are always float32.
"""

from torch import Tensor

from lookfar.ops._precision import widened, without_autocast


def channel_attention_weights(x: Tensor, *, scale: float = -1.0) -> Tensor:
    """``(B, C, N) -> (B, C, C)``; every row sums to one.

    >>> import torch
    >>> channel_attention_weights(100 * torch.eye(2)[None]).tolist()  # each channel looks at the one that differs
    [[[0.0, 1.0], [1.0, 0.0]]]
    """
    with without_autocast(x):
        x = widened(x)
        return (scale * (x @ x.transpose(-2, -1))).softmax(-1)  # scaled are C x C products, not the map


def channel_attention_reference(x: Tensor, *, scale: float = -1.0) -> Tensor:
    """The definition as the authors compute it: energies subtracted from their row's largest, softmax, weighted sum.

    >>> import torch
    >>> channel_attention_reference(100 * torch.eye(2)[None]).tolist()  # each channel takes the one that differs
    [[[0.0, 100.0], [100.0, 0.0]]]
    """
    with without_autocast(x):
        wide = widened(x)
        energy = -scale * (wide @ wide.transpose(-2, -1))
        weights = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
        return (weights @ wide).to(x.dtype)


def channel_attention(x: Tensor, *, scale: float = -1.0) -> Tensor:
    """Softmax attention between the C channels of ``x``, without parameters.

    >>> import torch
    >>> channel_attention(100 * torch.eye(2)[None]).tolist()  # each channel takes the one that differs
    [[[0.0, 100.0], [100.0, 0.0]]]

    Args:
        x: Channels as rows.
        scale: Factor on their products; a negative one, as the authors use, gives most weight to the least similar.

    Shape: ``(B, C, N) -> (B, C, N)``

    Raises:
        ValueError: ``x`` does not have three axes.
    """
    if x.dim() != 3:
        raise ValueError(f"want x (B, C, N), a map is flattened by x.flatten(2); got {x.shape=}")
    with without_autocast(x):
        return (channel_attention_weights(x, scale=scale) @ widened(x)).to(x.dtype)
