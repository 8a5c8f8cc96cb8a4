"""Attention split in two: how i relates to j once the means are removed (pairwise), how salient j is to all (unary).

softmax_j(q_i . k_j) = softmax_j((q_i - mean q) . (k_j - mean k) + mean q . k_j): the joint attention is the product of
the two, renormalised. Terms constant over j cancel in the softmax, so removing the mean of the queries is enough.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar.ops._autograd import traced, under_transform
from lookfar.ops._precision import factor, softmax, widened, without_autocast
from lookfar.ops.embedded_gaussian import embedded_gaussian


def centred(t: Tensor) -> Tensor:
    """``(B, h, N, D)`` minus its mean over the positions, channel by channel.

    >>> centred(torch.tensor([[[[1.0], [3.0]]]])).tolist()
    [[[[-1.0], [1.0]]]]
    """
    return t - t.mean(-2, keepdim=True)


def pairwise_attention_reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0) -> Tensor:
    """The definition: weights softmax_j(scale * (q_i - mean q) . (k_j - mean k)).

    >>> q, k, v = torch.ones(1, 1, 1, 1), torch.tensor([[[[0.0], [9.0]]]]), torch.tensor([[[[1.0], [3.0]]]])
    >>> pairwise_attention_reference(q, k, v).tolist()  # a single query is the mean query, to which all keys are alike
    [[[[2.0]]]]
    """
    with without_autocast(q):
        q, k = (widened(t) - widened(t).mean(-2, keepdim=True) for t in (q, k))
        return ((scale * q @ k.transpose(-2, -1)).softmax(-1) @ widened(v)).to(v.dtype)


def pairwise_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0) -> Tensor:
    """:func:`pairwise_attention_reference` as one fused attention of centred queries to the unchanged keys.

    >>> q, k, v = torch.ones(1, 1, 1, 1), torch.tensor([[[[0.0], [9.0]]]]), torch.tensor([[[[1.0], [3.0]]]])
    >>> pairwise_attention(q, k, v).tolist()  # a single query is the mean query, to which all keys are alike
    [[[[2.0]]]]

    Shape: ``(B, h, N, D), (B, h, M, D), (B, h, M, E) -> (B, h, N, E)``
    """
    return embedded_gaussian(centred(q), k, v, scale=scale)


def unary_weights(logits: Tensor) -> Tensor:
    """``(B, h, M) -> (B, h, 1, M)``: one map for every query, at least in float32.

    >>> unary_weights(torch.tensor([[[3.0, 1.0]]]).log())
    tensor([[[[0.7500, 0.2500]]]])
    """
    return softmax(widened(logits)).unsqueeze(-2)


def unary_attention(logits: Tensor, v: Tensor) -> Tensor:
    """The softmax of the logits over the positions times the values: ``(B, h, M), (B, h, M, E) -> (B, h, 1, E)``.

    >>> unary_attention(torch.tensor([[[3.0, 1.0]]]).log(), torch.tensor([[[[1.0], [0.0]]]]))
    tensor([[[[0.7500]]]])
    """
    with without_autocast(v):
        values = factor(v)
        weights = unary_weights(logits).to(values.dtype)
        learns = torch.is_grad_enabled() and v.requires_grad
        # in this order, or that, their gradient lies as values do
        if not under_transform() and (v.stride(-1) == 1 or not (learns or traced())):
            if v.shape[1] == 1:  # broadcast over heads, torch would copy the values
                return torch.bmm(weights.squeeze(2), values.squeeze(1)).unsqueeze(2).to(v.dtype)
            return (weights @ values).to(v.dtype)
        return (values.transpose(-2, -1) @ weights.transpose(-2, -1)).transpose(-2, -1).to(v.dtype)


def multiplied_attention_weights(q: Tensor, k: Tensor, logits: Tensor, *, scale: float = 1.0) -> Tensor:
    """Weights softmax_j(scale * q_i . k_j + logits_j): ``(B, h, Q, D), (B, h, M, D), (B, h, M) -> (B, h, Q, M)``.

    >>> q, k = torch.ones(1, 1, 1, 1), torch.tensor([[[[2.0], [1.0]]]]).log()
    >>> logits = torch.tensor([[[2.0, 1.0]]]).log()
    >>> multiplied_attention_weights(q, k, logits)  # 2 * 2 : 1 * 1
    tensor([[[[0.8000, 0.2000]]]])
    """
    with without_autocast(q):
        q, k, logits = widened(q), widened(k), widened(logits)
        return (scale * q @ k.transpose(-2, -1) + logits.unsqueeze(-2)).softmax(-1)


def multiplied_attention_reference(q: Tensor, k: Tensor, logits: Tensor, v: Tensor, *, scale: float = 1.0) -> Tensor:
    """The definition: pairwise times unary attention, renormalised, is one softmax over the sum of their logits.

    >>> q, k = torch.ones(1, 1, 1, 1), torch.tensor([[[[2.0], [1.0]]]]).log()
    >>> logits = torch.tensor([[[2.0, 1.0]]]).log()
    >>> multiplied_attention_reference(q, k, logits, torch.tensor([[[[1.0], [0.0]]]]))  # weights 2 * 2 : 1 * 1
    tensor([[[[0.8000]]]])
    """
    with without_autocast(q):
        weights = scale * widened(q) @ widened(k).transpose(-2, -1) + widened(logits)[..., None, :]
        return (weights.softmax(-1) @ widened(v)).to(v.dtype)


def multiplied_attention(q: Tensor, k: Tensor, logits: Tensor, v: Tensor, *, scale: float = 1.0) -> Tensor:
    """:func:`multiplied_attention_reference` as one fused attention with an extra channel, [q, 1] and [k, logits].

    Half-precision inputs are computed in float32: rounding the logits would change the weights.

    >>> q, k = torch.ones(1, 1, 1, 1), torch.tensor([[[[2.0], [1.0]]]]).log()
    >>> logits = torch.tensor([[[2.0, 1.0]]]).log()
    >>> multiplied_attention(q, k, logits, torch.tensor([[[[1.0], [0.0]]]]))  # weights 2 * 2 : 1 * 1
    tensor([[[[0.8000]]]])

    Shape: ``(B, h, N, D), (B, h, M, D), (B, h, M), (B, h, M, E) -> (B, h, N, E)``
    """
    with without_autocast(q):
        q, k, logits = widened(q), widened(k), widened(logits)
        q = F.pad(scale * q, (0, 1), value=1.0)
        return embedded_gaussian(q, torch.cat([k, logits.unsqueeze(-1)], -1), v)
