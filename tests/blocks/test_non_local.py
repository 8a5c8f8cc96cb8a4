"""What is special about the non-local block: every choice against the definition, written as a loop over positions."""

import math

import pytest
import torch
import torch.nn.functional as F
from ops._compare import assert_same
from torch import Tensor, nn

from lookfar import create_block


def made(channels: int = 8, **options) -> nn.Module:
    """A block in float64 and eval mode whose parameters are all random."""
    m = create_block("nonlocal", channels, dtype=torch.float64, **options).eval()
    for p in m.parameters():
        nn.init.normal_(p, std=0.5)
    return m


def pooled(t: Tensor, stride: int) -> Tensor:
    """Max-pooling of the last two axes."""
    return F.max_pool2d(t, stride) if t.dim() == 4 else F.max_pool3d(t, (1, stride, stride))


def normalised(s: Tensor, how: str) -> Tensor:
    """Similarities (N, M) as weights."""
    if how in ("softmax", "double"):
        weights = s.exp() if how == "softmax" else s.exp() / s.exp().sum(0, keepdim=True)
        return weights / (weights.sum(1, keepdim=True) + (1e-9 if how == "double" else 0.0))
    if how == "l1":
        return s / s.abs().sum(1, keepdim=True).clamp_min(1e-12)  # a row of zeros stays one
    return (1 / (1 + (-s).exp()) if how == "sigmoid" else s) / s.shape[1]


def by_loops(m: nn.Module, x: Tensor, *, mode: str, heads: int = 1, subsample: int = 1, order: str = "after",
             normalization: str = "", scale: float | None = None) -> Tensor:  # fmt: skip
    """One image, one head, one query, one key at a time."""

    def apply(conv: nn.Module | None, t: Tensor) -> Tensor:
        return t if conv is None else conv(t)

    source = pooled(x, subsample) if order == "before" and subsample > 1 else x
    q = apply(m.query or m.embed, x)
    k = apply(None if mode == "gaussian" and m.embed is None else m.key or m.query or m.embed, source)
    g = apply(m.value or m.embed, source)
    if order == "after" and subsample > 1:
        k, g = pooled(k, subsample), pooled(g, subsample)
    q, k, g = (t.flatten(2) for t in (q, k, g))
    N, M, D = q.shape[2], k.shape[2], g.shape[1]
    y = torch.zeros(x.shape[0], D, N, dtype=x.dtype)
    for b in range(x.shape[0]):
        for h in range(heads):
            qh, kh, gh = (t[b].chunk(heads)[h] for t in (q, k, g))
            s = torch.zeros(N, M, dtype=x.dtype)
            for i in range(N):
                for j in range(M):
                    if mode == "concatenation":
                        s[i, j] = torch.relu(m.pair[h] @ torch.cat([qh[:, i], kh[:, j]]))
                    else:
                        s[i, j] = qh[:, i] @ kh[:, j]
            if mode == "embedded_gaussian":
                s = s * ((D // heads) ** -0.5 if scale is None else scale)
            weights = normalised(s, normalization or ("softmax" if "gaussian" in mode else "none"))
            y[b, h * D // heads : (h + 1) * D // heads] = gh @ weights.T
    y = m.project(y.view(x.shape[0], D, *x.shape[2:]))
    return x + (y if m.norm is None else m.norm(y))


CASES = {
    "gaussian, heads, pool": ({"mode": "gaussian"}, {"heads": 2, "subsample": 2, "scale": 1.0}),
    "embedded, unscaled": ({"mode": "embedded_gaussian"}, {"scale": 1.0}),
    "embedded, heads, before": ({"mode": "embedded_gaussian"}, {"heads": 2, "subsample": 2, "order": "before"}),
    "double": ({"mode": "embedded_gaussian"}, {"normalization": "double", "scale": 0.8}),
    "sigmoid": ({"mode": "embedded_gaussian"}, {"normalization": "sigmoid", "heads": 4}),
    "dot, pool": ({"mode": "dot_product"}, {"heads": 2, "subsample": 2}),
    "dot, l1": ({"mode": "dot_product"}, {"normalization": "l1"}),
    "concatenation, after": ({"mode": "concatenation"}, {"heads": 2, "subsample": 2}),
    "concatenation, before": ({"mode": "concatenation"}, {"heads": 2, "subsample": 2, "order": "before"}),
    "concatenation, l1": ({"mode": "concatenation"}, {"normalization": "l1"}),
}


@pytest.mark.parametrize("projections", ["inside", "shared", "around"])
@pytest.mark.parametrize(("mode", "choices"), CASES.values(), ids=CASES)
def test_equals_the_loops(mode, choices, projections):
    if projections == "shared" and mode["mode"] == "gaussian":
        pytest.skip("the gaussian mode has nothing to share")
    options = {"subsample_order" if k == "order" else k: v for k, v in choices.items() if v and k != "scale"}
    if "scale" in choices and mode["mode"] == "embedded_gaussian":
        options["scale"] = choices["scale"]
    options |= {"shared": {"share_query_key": True}, "around": {"projections": "around"}}.get(projections, {})
    m = made(**mode, **options)
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    assert_same("y", m(x), by_loops(m, x, **mode, **choices))


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("mode", ["gaussian", "embedded_gaussian", "dot_product", "concatenation"])
def test_dimensions(mode, dims):
    """A line and a film are maps of another shape; only sub-sampling knows the difference."""
    shape = {1: (12,), 3: (3, 2, 2)}[dims]
    m = made(mode=mode, dims=dims)
    flat = made(mode=mode)
    flat.load_state_dict({k: v.reshape(flat.state_dict()[k].shape) for k, v in m.state_dict().items()})
    x = torch.randn(2, 8, *shape, dtype=torch.float64)
    assert_same("y", m(x).flatten(2), flat(x.flatten(2)[..., None]).flatten(2))


def test_time_is_never_subsampled():
    m = made(dims=3, subsample=2)
    x = torch.randn(1, 8, 3, 4, 5, dtype=torch.float64)
    assert m.values(x).shape == (1, 1, 3 * 2 * 2, 4)


@pytest.mark.parametrize("order", ["before", "after"])
def test_axes_of_length_one_are_left_alone(order):
    m = made(subsample=2, subsample_order=order)
    assert m.attention(torch.randn(1, 8, 1, 6, dtype=torch.float64)).shape == (1, 1, 6, 3)


@pytest.mark.parametrize(
    "options", [{}, {"norm_layer": None}, {"norm_layer": lambda c, **dd: nn.GroupNorm(2, c, **dd)}]
)
def test_zero_factor_is_the_last_layer_alone(options):
    m = create_block("nonlocal", 8, **options)
    zero = [name for name, p in m.named_parameters() if name.endswith("weight") and not p.any()]
    assert zero == (["project.weight"] if m.norm is None else ["norm.weight"])


def test_scores_beyond_half_precision():
    """Unnormalised sums of features near 100 pass 65504, and the output convolution brings them back."""
    m = made(mode="dot_product", norm_layer=None, channels=32).float()
    x = 100 * torch.randn(1, 32, 6, 6)
    m.project.weight.data *= 1e-5
    want = m.double()(x.double())
    with torch.autocast("cpu", dtype=torch.float16):
        got = m.float()(x)
    assert_same("y", got.double(), want, 5e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "gausian"}, "mode must be gaussian, .*got 'gausian'. Did you mean gaussian"),
        ({"normalization": "l1"}, "exponentials are positive: l1 is softmax"),
        ({"mode": "dot_product", "normalization": "softmax"}, "that is mode='embedded_gaussian'"),
        (
            {"mode": "concatenation", "normalization": "double"},
            "must be none or l1, got 'double'",
        ),
        (
            {"mode": "concatenation", "scale": 2.0},
            "learned weights in its place, got 2.0",
        ),
        ({"mode": "gaussian", "share_query_key": True}, "no projections of queries and keys"),
        ({"heads": 3, "inner_channels": 4}, "heads must divide inner_channels=4, got 3: 2 does"),
        ({"mode": "gaussian", "heads": 3}, "heads must divide channels=8, got 3"),
        ({"subsample": 0}, "subsample must be a positive integer, got 0"),
        ({"subsample_order": "first"}, "before or after"),
        ({"projections": "outside"}, "inside or around"),
        ({"dims": 4}, "dims must be 1, 2 or 3"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        create_block("nonlocal", 8, **options)


def test_defaults_are_the_authors():
    m = create_block("nonlocal", 64)
    assert (m.mode, m.value.out_channels) == ("embedded_gaussian", 32)
    assert m.scale == pytest.approx(1 / math.sqrt(32))
    assert isinstance(m.norm, nn.BatchNorm2d)
