"""What is done to a network after an insertion: copied, compiled, exported."""

import copy
import pickle

import pytest
import torch
from insertion.hosts import HOSTS, LIGHT, assert_equal, host, images, run, wake
from samples import assert_same

from lookfar import insert, remove


@pytest.mark.parametrize("name", LIGHT)
def test_copies_are_independent(name: str) -> None:
    net = host(name).eval()
    insert(net, "position_attention", at=HOSTS[name][0], example=images())
    wake(net)
    want = run(net)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_equal(run(copied), want)
        wake(copied)
        assert not torch.equal(run(copied)[0], want[0])
        assert_equal(run(net), want)
        assert remove(copied)


@pytest.mark.parametrize("name", ["resnet18", "regnety_002"])
def test_compile_and_export(name: str) -> None:
    net = host(name, features_only=True).eval()
    insert(net, "position_attention", at=HOSTS[name][0], example=images())
    wake(net)
    want = run(net)
    torch._dynamo.reset()
    with torch.no_grad():
        for got, w in zip(torch.compile(net, fullgraph=True, backend="aot_eager")(images()), want):
            assert_same(name, got, w, 1e-5)
        exported = torch.export.export(net, (images(),)).module()
        for got, w in zip(exported(images()), want):
            assert_same(name, got, w, 1e-5)
