"""EMANet: what happens to the bases in training, and what the published gradient leaves out."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from samples import assert_same, randomise
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lookfar import create_block, weights


def make(**options) -> nn.Module:
    return randomise(create_block("expectation_maximization", 8, bases=4, **options)).double()


def maps(batch: int = 3) -> Tensor:
    return torch.randn(batch, 8, 5, 6, dtype=torch.float64)


@pytest.mark.parametrize("variant", ["authors", "mmseg"])
def test_bases_follow_a_moving_average_in_training_alone(variant):
    m = make(variant=variant, momentum=0.3)
    x, before = maps(), m.bases.clone()
    mean = m.reconstruct(x)[1].mean(0)
    m.eval()(x)
    assert torch.equal(m.bases, before)
    m.train()(x)
    if variant == "mmseg":
        mean = F.normalize(mean, dim=1)
    assert_same("bases", m.bases, 0.7 * before + 0.3 * mean)
    assert float(m.bases.norm(dim=1).max()) < 1, "they are not normalised again"


def test_an_empty_batch_moves_nothing():
    m = make().train()
    before = m.bases.clone()
    m(maps(0))
    assert torch.equal(m.bases, before)


def test_the_two_codes_guard_divisions_differently():
    """Where a basis gets no position, the authors' 1e-6 shrinks it to nothing, mmsegmentation's 1e-12 keeps it."""
    m = make()
    with torch.no_grad():
        m.embed.weight.copy_(torch.eye(8)[..., None, None])
        m.embed.bias.zero_()
        m.bases.zero_()
        m.bases[0, 0, 0] = -40
    x = maps().abs() + 1
    norms = {}
    for variant in ("authors", "mmseg"):
        m.variant, m.iterations = variant, 1
        norms[variant] = float(m.reconstruct(x)[1][0, 0, :, 0].norm())
    assert norms["authors"] < 1e-2
    assert norms["mmseg"] == pytest.approx(1)


def test_the_first_convolution_learns_only_when_asked():
    """As published its gradient is zero; the named options differentiate the last EM step, or all."""
    x = maps()
    sizes = {}
    for gradient in ("none", "last", "full"):
        m = make(gradient=gradient)
        m.load_state_dict(make().state_dict())
        m(x).square().sum().backward()
        sizes[gradient] = 0.0 if m.embed.weight.grad is None else float(m.embed.weight.grad.norm())
    assert sizes["none"] == 0
    assert sizes["last"] > 1e-3
    assert sizes["full"] > 1e-3
    assert sizes["last"] != pytest.approx(sizes["full"])


def test_the_gradient_of_the_input_is_that_of_the_residual_as_published():
    m = make()
    x = maps().requires_grad_()
    y = m(x)
    y.backward(torch.ones_like(y))
    assert torch.equal(x.grad, torch.ones_like(x))


def test_training_under_a_differentiated_em_may_change_the_bases():
    """The moving average is written in place while the graph still holds the bases it started from."""
    m = make(gradient="full", iterations=1).train()
    m(maps()).sum().backward()


def test_half_precision_runs_em_in_float32():
    m = make().float().eval()
    x = 40 * maps().float()
    want = m.reconstruct(x)[1]
    with torch.autocast("cpu", dtype=torch.float16):
        fitted = m.reconstruct(x)[1]
    assert fitted.dtype == torch.float32
    assert torch.equal(fitted, want)


def test_published_weights_bring_the_final_relu():
    m = make()
    names = {"bases": "mu", "embed": "conv1", "project": "conv2.0", "norm": "conv2.1"}
    published = {}
    for key, value in m.state_dict().items():
        layer, dot, rest = key.partition(".")
        published[names[layer] + dot + rest] = value
    loaded = weights.load(create_block("expectation_maximization", 8, bases=4).double(), published).eval()
    x = maps()
    assert_same("y", loaded(x), m.eval()(x).relu())


SHARES = ((1, 3), (4, 0))  # of a batch of four to two processes


def _update(rank: int, address: str, state: dict, x: Tensor, queue) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    try:
        found = []
        for share in SHARES:
            m = make().eval()
            m.load_state_dict(state)
            m.update_bases(m.reconstruct(x.split(share)[rank])[1])
            found.append(m.bases.tolist())
        queue.put(found)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_bases_are_averaged_over_processes(tmp_path):
    """Every image counts the same, on whichever process it is, and a process without images takes part."""
    m, x = make().eval(), maps(4)
    state = copy.deepcopy(m.state_dict())
    m.update_bases(m.reconstruct(x)[1])
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    args = (f"file://{tmp_path}/store", state, x, queue)
    workers = [context.Process(target=_update, args=(rank, *args)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    for _ in workers:
        for share, bases in zip(SHARES, queue.get()):
            assert_same(f"shares {share}", torch.tensor(bases, dtype=torch.float64), m.bases)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads must divide channels=16, got 3"),
        ({"variant": "paper"}, "variant must be authors or mmseg, got 'paper'"),
        ({"gradient": True}, "gradient must be none, last or full, got True"),
        ({"iterations": 0}, "iterations must be an integer from 1 to 1000, got 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        create_block("expectation_maximization", 16, **options)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_would_give_the_gradient_of_moved_bases(reentrant):
    x = torch.randn(2, 8, 5, 4, requires_grad=True)
    m = randomise(create_block("expectation_maximization", 8)).train()
    with pytest.raises(RuntimeError, match=r"momentum=0, or leave its stage out"):
        checkpoint(m, x, use_reentrant=reentrant).sum().backward()
    still = randomise(create_block("expectation_maximization", 8, momentum=0)).train()
    plain = copy.deepcopy(still)
    checkpoint(still, x, use_reentrant=reentrant).square().sum().backward()
    plain(x).square().sum().backward()
    for p, q in zip(still.parameters(), plain.parameters()):
        if q.grad is not None:
            assert_same("gradient", p.grad, q.grad)
