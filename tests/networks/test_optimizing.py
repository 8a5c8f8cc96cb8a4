"""Linear layers in a row become one convolution: the same outputs, and nothing joined that must not be."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookfar import create_block, insert, list_blocks, optimize
from lookfar._drawing import randomise
from lookfar.blocks import parse_block, sample_inputs

NORMS = nn.modules.batchnorm._BatchNorm
# their last convolution acts on descriptors, and the norm behind on what those are mixed to
KEPT = {"external_attention": 1, "glore": 1}


def drawn(network: nn.Module) -> nn.Module:
    """Parameters and statistics that differ by channel."""
    randomise(network)
    for module in network.modules():
        if isinstance(module, NORMS) and module.running_mean is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_()
            module.get_buffer("running_var").uniform_(0.5, 2)
    return network


def count(network: nn.Module, kind: Any) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


def assert_same(network: nn.Module, x: Any, left: int, tolerance: float = 1e-5) -> nn.Module:
    """The optimized network, in which so many norms are left."""
    before = {k: v.clone() for k, v in network.state_dict().items()}
    modules = [(name, type(module), module.training) for name, module in network.named_modules()]
    x = x if isinstance(x, tuple) else (x,)
    done = optimize(network, x)
    assert [(name, type(module), module.training) for name, module in network.named_modules()] == modules
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert count(done, NORMS) == left
    assert not done.training
    with torch.no_grad():
        want, got = network.eval()(*x), done(*x)
    assert (got - want).abs().max() <= tolerance * want.abs().max()
    return done


@pytest.mark.parametrize("name", [n for n in list_blocks() if count(create_block(n, 16), NORMS)])
def test_every_block_with_a_norm(name: str) -> None:
    block = drawn(create_block(name, 16))
    assert_same(block, sample_inputs(block, 16, (9, 11)), KEPT.get(name, 0))


@pytest.mark.parametrize(
    "text",
    [
        "expectation_maximization(variant=mmseg)",
        "nonlocal(subsample=2, reduction=1)",
        "nonlocal(reduction=1, heads=2)",
        "nonlocal(mode=dot_product, reduction=1)",
        "nonlocal(mode=concatenation, reduction=1)",
        "object_context(mode=pyramid)",
        "asymmetric_nonlocal(heads=2)",
    ],
)
def test_options_of_blocks(text: str) -> None:
    name, options = parse_block(text)
    assert_same(drawn(create_block(name, 16, **options)), torch.randn(2, 16, 9, 11), 0)


@pytest.mark.parametrize(("text", "joined"), [("nonlocal(reduction=1)", 1), ("nonlocal", 0), ("interlaced", 2)])
def test_values_and_what_follows_attention(text: str, joined: int) -> None:
    """One convolution where that is less work; the block's law holds with it."""
    name, options = parse_block(text)
    block, x = drawn(create_block(name, 16, **options)), torch.randn(2, 16, 16, 24)
    done: Any = assert_same(block, x, 0)
    assert count(block, nn.Conv2d) - count(done, nn.Conv2d) == joined
    if name != "interlaced":
        with torch.no_grad():
            want = block(x)
            law = done.finish(x, done.attention(x) @ done.values(x))
        assert (law - want).abs().max() <= 1e-5 * want.abs().max()


def test_a_network_with_a_block() -> None:
    network = timm.create_model("resnet10t", num_classes=5)
    example = torch.randn(1, 3, 64, 64)
    insert(network, "nonlocal", at="layer2", example=example)
    assert_same(drawn(network), torch.randn(2, 3, 48, 80), 0)


class Odd(nn.Module):
    """A convolution that is read twice, one that is run twice, one whose norm has no statistics; tied weights may."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.again, self.batch, self.tied, self.other = (nn.Conv2d(4, 4, 1) for _ in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4, track_running_stats=n != 2) for n in range(5))
        self.other.weight = self.tied.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.read(x)
        x = y + self.norms[0](y)
        x = self.again(self.norms[1](self.again(x)))
        x = self.norms[2](self.batch(x))
        return self.norms[3](self.tied(x)) + self.other(self.norms[4](x))


def test_what_must_not_be_folded() -> None:
    assert_same(drawn(Odd()), torch.randn(2, 4, 5, 6), 4)


class Gated(Odd):
    """Behind a factor that is 0, where no mistake shows in the output."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * super().forward(x)


def test_a_branch_that_is_still_shut() -> None:
    assert count(optimize(Gated(), torch.randn(2, 4, 5, 6)), NORMS) == 4


class Pair(nn.Module):
    """A convolution and its norm, and what a subclass does to them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class OneNormForTwo(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.norm(self.second(x))


class WeightReadElsewhere(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.conv2d(x, self.conv.weight, padding=1)


class NormReadElsewhere(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.norm.weight.sum()


class AlwaysTraining(Pair):
    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.norm.train()
        return self


class ChangedInPlace(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).relu_())


class TwoNames(Pair):
    """The norm is run by one name and known by another."""

    def __init__(self) -> None:
        super().__init__()
        self.alias = self.norm


def with_hook(of: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        network = Pair()
        getattr(network, of).register_forward_hook(lambda module, args, y: None)
        return network

    return build


def normed_weight(normalise: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        network = Pair()
        normalise(network.conv)
        return network

    return build


STAY = {
    "one norm behind two convolutions": OneNormForTwo,
    "a weight that other code reads": WeightReadElsewhere,
    "a norm that other code reads": NormReadElsewhere,
    "a norm that is always in training": AlwaysTraining,
    "an activation in place between them": ChangedInPlace,
    "a hook on the convolution": with_hook("conv"),
    "a hook on the norm": with_hook("norm"),
    "weight norm": normed_weight(nn.utils.parametrizations.weight_norm),
    "spectral norm": normed_weight(nn.utils.spectral_norm),
}


@pytest.mark.parametrize("build", STAY.values(), ids=STAY)
def test_what_stays_apart(build: Callable[[], nn.Module]) -> None:
    assert_same(drawn(build()), torch.randn(2, 4, 5, 6), 1)


def test_one_name_of_two() -> None:
    x = torch.randn(2, 4, 5, 6)
    network = drawn(TwoNames())
    done = optimize(network, x)
    assert (done(x) - network.eval()(x)).abs().max() < 1e-5


def test_twice() -> None:
    once = assert_same(drawn(Pair()), torch.randn(2, 4, 5, 6), 0)
    twice = assert_same(once, torch.randn(2, 4, 5, 6), 0)
    assert all(torch.equal(v, twice.state_dict()[k]) for k, v in once.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Joined as in float64; the outputs differ by what rounding the new weights costs."""
    done = assert_same(drawn(Pair()).to(dtype), torch.randn(2, 4, 5, 6, dtype=dtype), 0, tolerance=2e-2)
    assert {p.dtype for p in done.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        (lambda: [nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 6, 1)], 1),
        (lambda: [nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1, bias=False)], 1),
        (lambda: [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU()], 1),
        (lambda: [nn.Conv2d(64, 2, 1), nn.Conv2d(2, 64, 1)], 2),  # apart they are less work
        (lambda: [nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 3)], 2),
        (lambda: [nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1, padding=1)], 2),
        (lambda: [nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1, stride=2)], 2),
        (lambda: [nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1, groups=2)], 2),
        (lambda: [nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(8, 4, 1)], 2),
        (lambda: [nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)], 2),
    ],
)
def test_convolutions_in_a_row(layers: Callable[[], list[nn.Module]], left: int) -> None:
    network = drawn(nn.Sequential(*layers()))
    channels = next(m for m in network.modules() if isinstance(m, nn.Conv2d)).in_channels
    done = assert_same(network, torch.randn(2, channels, 9, 12), 0)
    assert count(done, nn.Conv2d) == left


def test_layers_with_something_in_place_between_them_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    from lookfar.networks import optimizing

    runs, run = [], optimizing._run
    monkeypatch.setattr(optimizing, "_run", lambda *args: runs.append(args) or run(*args))
    layers = [layer for _ in range(8) for layer in (nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True))]
    done = assert_same(
        drawn(nn.Sequential(*layers, nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1))), torch.randn(2, 4, 5, 6), 0
    )
    assert count(done, nn.Conv2d) == 9
    assert len(runs) == 2  # as it is, and with the two


def test_one_reader_of_what_lies_between_keeps_its_pair_alone() -> None:
    """Of many pairs that cannot all be joined, all others are."""

    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Conv2d(4, 4, 1 if n % 2 else 3, padding=1 - n % 2) for n in range(10)))
            self.acts = nn.Sequential(*(nn.ReLU() for _ in range(5)))

        def forward(self, x: Tensor) -> Tensor:
            kept: Any = 0
            for n, act in enumerate(self.acts):
                between = self.layers[2 * n](x)
                x = act(self.layers[2 * n + 1](between))
                kept = kept + between if n == 3 else kept
            return x + kept

    assert count(assert_same(drawn(Read()), torch.randn(2, 4, 5, 6), 0), nn.Conv2d) == 6


def test_what_does_not_learn_still_does_not() -> None:
    network = drawn(Pair()).requires_grad_(False)
    assert not any(p.requires_grad for p in optimize(network, torch.randn(2, 4, 5, 6)).parameters())


def test_an_example_is_asked_for() -> None:
    with pytest.raises(ValueError, match="give example="):
        optimize(nn.Conv2d(3, 4, 1))
