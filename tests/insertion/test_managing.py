"""Several blocks, off and on, removed, described."""

import copy

import pytest
import torch
from insertion.hosts import Identical, assert_equal, host, images, run, wake
from torch import nn

from lookfar import describe, insert, remove
from lookfar.insertion import insertions, switched_off


def test_two_blocks_at_one_place_run_in_order_of_insertion() -> None:
    net = host("resnet18")
    first = insert(net, "position_attention", at="layer3", example=images())
    wake(net)
    kept = run(net)
    with pytest.warns(UserWarning, match="position_attention stands after layer3 twice now: if you ran"):
        second = insert(net, "position_attention", at="layer3", example=images())
    assert first + second == ["layer3.1.position_attention", "layer3.1.position_attention_2"]
    assert_equal(run(net), kept)
    wake(net)
    both = run(net)
    with switched_off(net, first):
        only_second = run(net)
    with switched_off(net, second):
        only_first = run(net)
    with switched_off(net):
        none = run(net)
    assert_equal(run(net), both)
    assert len({y[0].sum().item() for y in (both, only_first, only_second, none)}) == 4
    assert [found.name for found in insertions(net)] == first + second
    assert_equal(none, run(host("resnet18")))
    assert remove(net, first[0]) == first
    assert_equal(run(net), only_second)


@pytest.mark.filterwarnings("ignore:Identical stands after layer3 twice now")
def test_blocks_of_another_process_are_not_replaced() -> None:
    """Hook ids start anew in each process: the id of an unpickled hook may be given out again."""
    net = host("resnet18")
    insert(net, Identical, at="layer3", example=images())
    ((key, hook),) = net.layer3[1]._forward_hooks.items()
    del net.layer3[1]._forward_hooks[key]
    net.layer3[1]._forward_hooks[torch.utils.hooks.RemovableHandle.next_id + 3] = hook
    for _ in range(3):
        insert(net, Identical, at="layer3", example=images())
    assert len(insertions(net)) == 4


def test_describe_counts_what_was_added() -> None:
    net = host("resnet18")
    assert describe(net) == "no block has been inserted"
    insert(net, "position_attention", at=["layer2", "layer3"], example=images())
    (first, second, together, rest) = describe(net, example=images()).splitlines()[1:]
    parameters = [sum(p.numel() for p in found.module.parameters()) for found in insertions(net)]
    for line, found, count in zip((first, second), insertions(net), parameters):
        assert line.split()[:2] == [found.place, "position_attention"]
        assert str(count) in line
        assert "N^2 C" in line
    # layer2 gives 128 x 8 x 8: three projections and two products, a multiply-add is 2
    flops = 2 * 64 * (128 * (16 + 16 + 128) + 64 * (16 + 128)) / 1e9
    assert float(first.split()[4]) == pytest.approx(flops, rel=0.01)
    assert str(sum(parameters)) in together
    assert str(sum(p.numel() for p in host("resnet18").parameters())) in rest
    assert "–" in describe(timm_without_cfg(net))


def timm_without_cfg(net: nn.Module) -> nn.Module:
    net = copy.deepcopy(net)
    net.pretrained_cfg = net.default_cfg = None
    return net
