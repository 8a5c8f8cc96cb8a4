"""Dynamic message passing against the five original classes, written down from their equations under their names."""

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops._compare import assert_same
from samples import randomise
from torch import Tensor, nn

from lookfar import create_block, weights

NORM_GROUPS = 2
State = dict[str, Tensor]


def sampled(h: Tensor, d: int, offsets: Tensor | None) -> Tensor:
    """``(B, c, 9, H, W)``: image by image, sample by sample, corner by corner; zeros outside."""
    H, W = h.shape[2:]
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    found = []
    for b, k in product(range(len(h)), range(9)):
        row, column = y + (k // 3 - 1) * d, x + (k % 3 - 1) * d
        if offsets is not None:
            row, column = row + offsets[b, 2 * k], column + offsets[b, 2 * k + 1]
        total = torch.zeros_like(h[b])
        for i, j in product((0, 1), (0, 1)):
            n, m = row.floor().long() + i, column.floor().long() + j
            share = (1 - (row - n).abs()) * (1 - (column - m).abs())
            inside = (n >= 0) & (n < H) & (m >= 0) & (m < W)
            total = total + inside * share * h[b][:, n.clamp(0, H - 1), m.clamp(0, W - 1)]
        found.append(total)
    return torch.stack(found).unflatten(0, (len(h), 9)).transpose(1, 2)


def weighted(filters: Tensor, samples: Tensor) -> Tensor:
    """``(B, G, 9, H, W), (B, c, 9, H, W) -> (B, c, H, W)``, channel g R + r by filter g."""
    share = filters.repeat_interleave(samples.shape[1] // filters.shape[1], 1)
    return (share * samples).sum(2)


def original(cls: str, a: dict[str, Any], p: State, x: Tensor) -> Tensor:
    """The output of an original class with arguments ``a`` and parameters ``p``."""

    def scale(n: int, t: Tensor) -> Tensor:
        t = F.conv2d(t, p[f"scale{n}.0.weight"], p.get(f"scale{n}.0.bias"))
        return F.group_norm(t, NORM_GROUPS, p[f"scale{n}.1.weight"], p[f"scale{n}.1.bias"]).relu()

    def conv(name: str, d: int) -> Tensor:
        return F.conv2d(h, p[f"{name}.weight"], padding=d, dilation=d)

    if cls == "DynamicWeights":
        h = x
        return x + p["gamma"] * weighted(conv("cata", 1).softmax(1)[:, None], sampled(x, 1, None))
    h = scale(1, x) if cls.endswith("11") else x
    G, deform, rigorous = a["group"], a["deform"], cls.startswith("Re")
    messages = []
    for letter, d in zip("abcd", a["dilation"], strict=True):
        offsets = gate = None
        if deform == "none":
            z = conv(f"cat{letter}", d)
        elif rigorous:
            offsets = conv(f"off_conv{letter}", d)
            kernel = p[f"kernel_conv{letter}.weight"].flatten(2)
            z = torch.einsum("ock,bckyx->boyx", kernel, sampled(h, d, offsets))
            gate = z[:, :-9][:, -9:] if letter == "d" else z[:, -9:]
        else:
            z = conv(f"cat{letter}", d)
            offsets = z[:, 9 * G : 9 * G + 18]
            gate = z[:, -9:]
        samples = sampled(h, d, offsets)
        filters = z[:, : 9 * G].unflatten(1, (G, 9))
        if deform != "deformatt":
            filters = filters.softmax(2)
        elif rigorous:
            filters = filters * gate.softmax(1)[:, None]
        else:
            filters, samples = filters.softmax(2), samples * gate.sigmoid()[:, None]
        messages.append(weighted(filters, samples))
    if rigorous:
        y = h + sum(p[f"gamma{s}"] * m for s, m in enumerate(messages, 1))
        return x + scale(3, y) if cls.endswith("11") else y
    y = scale(2, torch.cat([h, *messages], 1))
    return x + (scale(3, y) if cls.endswith("11") else y)


def parameters(cls: str, a: dict[str, Any]) -> State:
    """Random ones, under the names and in the shapes of the original."""
    C, G, deform = a["channels"], a["group"], a["deform"]
    c = C // 4 if cls.endswith("11") else C
    shapes: dict[str, tuple[int, ...]] = {}
    if cls == "DynamicWeights":
        shapes = {"gamma": (1,), "cata.weight": (9, C, 3, 3)}
    for letter in "abcd" if cls != "DynamicWeights" else "":
        if deform != "none" and cls.startswith("Re"):
            shapes[f"off_conv{letter}.weight"] = (18, c, 3, 3)
            shapes[f"kernel_conv{letter}.weight"] = (9 * G + 9 * (deform == "deformatt"), c, 3, 3)
        else:
            more = {"none": 0, "deform": 18, "deformatt": 27}[deform]
            shapes[f"cat{letter}.weight"] = (9 * G + more, c, 3, 3)
    if cls.startswith("Re"):
        shapes |= {f"gamma{s}": (1,) for s in range(1, 5)}
    scales = {1: (C, c), 3: (c, C)} if cls.endswith("11") else {}
    if cls.startswith("Dynamic") and cls != "DynamicWeights":
        scales[2] = (5 * c, c)
    for n, (before, after) in scales.items():
        shapes |= {f"scale{n}.0.weight": (after, before, 1, 1)}
        shapes |= {f"scale{n}.1.weight": (after,), f"scale{n}.1.bias": (after,)}
        shapes |= {f"scale{n}.0.bias": (after,)} if n == 2 and cls.endswith("33") else {}
    return {
        name: torch.randn(shape, dtype=torch.float64) * (1 if len(shape) == 1 else shape[1:].numel() ** -0.5)
        for name, shape in ((n, torch.Size(s)) for n, s in shapes.items())
    }


def ours(cls: str, a: dict[str, Any], **options: Any) -> nn.Module:
    if cls == "DynamicWeights":
        return create_block("dgmn", a["channels"], groups=1, dilation=1, walks=False, affinity="none", **options)
    return create_block(
        "dgmn", a["channels"], groups=a["group"], dilation=a["dilation"], walks=a["deform"] != "none",
        affinity="published" if a["deform"] == "deformatt" else "none",
        variant="rigorous" if cls.startswith("Re") else "fast", reduction=4 if cls.endswith("11") else 1,
        norm_layer=partial(nn.GroupNorm, NORM_GROUPS), **options,
    )  # fmt: skip


# class, channels, group, dilation, deform, size
CASES = [
    ("DynamicWeights", 6, 1, (1,), "none", (5, 8)),
    ("ReDynamicWeightsCat33", 6, 3, (1, 4, 8, 12), "deformatt", (7, 5)),
    ("ReDynamicWeightsCat33", 4, 1, (3, 1, 2, 2), "deformatt", (4, 9)),
    ("ReDynamicWeightsCat33", 4, 4, (2, 2, 5, 1), "deform", (6, 6)),
    ("ReDynamicWeightsCat33", 6, 2, (1, 2, 9, 4), "none", (1, 7)),
    ("ReDynamicWeightsCat11", 16, 2, (1, 2, 3, 4), "deformatt", (8, 3)),
    ("ReDynamicWeightsCat11", 16, 4, (1, 4, 8, 12), "deform", (5, 7)),
    ("ReDynamicWeightsCat11", 24, 3, (1, 2, 3, 6), "none", (5, 4)),
    ("DynamicWeightsCat33", 6, 3, (1, 4, 8, 12), "deformatt", (7, 6)),
    ("DynamicWeightsCat33", 4, 1, (1, 3, 2, 5), "deform", (3, 8)),
    ("DynamicWeightsCat33", 4, 2, (1, 3, 2, 5), "none", (6, 5)),
    ("DynamicWeightsCat11", 16, 2, (2, 1, 7, 3), "deformatt", (6, 7)),
    ("DynamicWeightsCat11", 16, 1, (1, 2, 4, 6), "deform", (9, 2)),
    ("DynamicWeightsCat11", 16, 4, (1, 2, 4, 6), "none", (4, 4)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(part) for part in c))
def test_equals_the_original(case):
    """Loaded into a block as users build it, which would start as the identity."""
    cls, size = case[0], case[-1]
    a = dict(zip(("channels", "group", "dilation", "deform"), case[1:-1], strict=True))
    p = {name: t.requires_grad_() for name, t in parameters(cls, a).items()}
    m = weights.load(ours(cls, a).double(), {name: t.detach() for name, t in p.items()})
    x = torch.randn(2, a["channels"], *size, dtype=torch.float64)
    theirs = x.clone().requires_grad_()
    got, want = m(x.requires_grad_()), original(cls, a, p, theirs)
    assert_same("y", got, want)
    g = torch.randn_like(want)
    got.backward(g)
    want.backward(g)
    assert_same("dx", x.grad, theirs.grad)
    own = dict(m.named_parameters())
    gradients = weights.convert(m, {name: torch.zeros_like(t) if t.grad is None else t.grad for name, t in p.items()})
    assert gradients.keys() == own.keys() - {"gamma"}
    for name, gradient in gradients.items():
        assert_same(name, own[name].grad, gradient)


@pytest.mark.parametrize("cls", sorted({case[0] for case in CASES}))
def test_starts_as_published_where_asked(cls):
    a = {"channels": 16, "group": 2, "dilation": (1, 2, 3, 4), "deform": "deformatt"}
    m = ours(cls, a, zero_init=False)
    assert all((p == 1).all() for name, p in m.named_parameters() if name.endswith("gamma"))
    x = torch.randn(1, 16, 6, 5)
    assert torch.equal(ours(cls, a)(x), x)
    assert not torch.allclose(m(x), x, atol=1e-3)


def test_fourth_affinity_is_borrowed_unless_asked():
    """The published code predicts it and never reads it: its gradient is exactly zero."""
    published, own = (randomise(create_block("dgmn", 8, affinity=a)).double() for a in ("published", "own"))
    own.load_state_dict(published.state_dict())
    assert published.inert_parameters == ("steps.3.affinity.weight",)
    assert own.inert_parameters == ()
    x = torch.randn(1, 8, 20, 18, dtype=torch.float64)
    for m in (published, own):
        m(x).square().sum().backward()
    assert not published.steps[3].affinity.weight.grad.any()
    assert own.steps[3].affinity.weight.grad.abs().max() > 1e-6
    heads = [m.attention(x, torch.tensor([100])).unflatten(1, (4, 4)) for m in (published, own)]
    assert_same("the others", heads[0][:, :3], heads[1][:, :3])
    assert (heads[0][:, 3] - heads[1][:, 3]).abs().max() > 0.05 * heads[1][:, 3].abs().max()
    assert create_block("dgmn", 8, dilation=(1, 4, 8)).inert_parameters == ()


def test_weights_outside_the_map_are_given_to_nobody():
    m = create_block("dgmn", 8, walks=False, affinity="none", dilation=(1, 12))
    x = torch.randn(1, 8, 9, 7)
    near, far = m.attention(x).unflatten(1, (2, 4)).sum(-1)[0]
    inside = near.unflatten(1, (9, 7))[:, 1:-1, 1:-1]
    assert_same("inside", inside, torch.ones_like(inside))
    assert (near.unflatten(1, (9, 7))[:, 0] < 1 - 1e-3).all()
    assert (far < 1 - 1e-3).all()  # of a grid wider than the map the centre is left


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"variant": "fast", "affinity": "none"},
            "groups must be 1 for variant='fast', walks=True, affinity='none', got 4",
        ),
        ({"groups": 3}, "groups must divide graph_channels=16, got 3: 2 does"),
        ({"reduction": 8, "groups": 4}, "groups must divide graph_channels=2, got 4"),
        ({"dilation": ()}, r"a positive integer or a tuple of these, got \(\)"),
        ({"dilation": (1, 0)}, r"a positive integer or a tuple of these, got \(1, 0\)"),
        ({"variant": "slow"}, "rigorous or fast, got 'slow'"),
        ({"affinity": True}, "published, own or none, got True"),
    ],
)
def test_what_fails_is_refused_early(options, words):
    with pytest.raises(ValueError, match=words):
        create_block("dgmn", 16, **options)


def test_a_step_keeps_a_few_maps_for_backward():
    """Of the definition, each dilation would keep the samples twice: 18 maps.

    What is counted is what the graph holds. The peak would also count the scratch space in which oneDNN computes the
    gradients of the plain convolutions: ten maps or none, from one torch to the next.
    """
    m = create_block("dgmn", 256, dilation=4, zero_init=False)
    x = torch.randn(1, 256, 24, 24).contiguous(memory_format=torch.channels_last).requires_grad_()
    parameters = {p.untyped_storage().data_ptr() for p in m.parameters()}
    kept = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = m(x)
    maps = sum(kept.values()) / (x.numel() * 4)
    assert y.requires_grad
    assert maps < 4, f"{maps:.1f} maps are kept"
