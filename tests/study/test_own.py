"""Blocks and hosts of the user's own: how they are written, found and refused, what an edited file does to a study."""

import functools
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lookfar
from lookfar.blocks._own import find_own, parse_address
from lookfar.blocks._sources import kept_source, source_of
from lookfar.cost import measure_cost
from lookfar.study import Plan
from lookfar.study.candidates import Candidate, is_reference, place_of, short_name, slug, split_candidates
from lookfar.study.sources import edited, keep, source_for

HERE = Path(__file__).parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files of a user, who works in their folder."""
    for name in ("own_block.py", "own_helper.py"):
        shutil.copy(HERE / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "canonical", "place"),
    [
        ("my.py:MyBlock", "my.py:MyBlock", None),
        (" ./my.py:MyBlock ( reduction = 8 ) @ layer3", "my.py:MyBlock(reduction=8)@layer3", "layer3"),
        ("a b/my.py:MyBlock@layer3", "a b/my.py:MyBlock@layer3", "layer3"),
        ("me@home/my.py:MyBlock", "me@home/my.py:MyBlock", None),
        (r"C:\my work\my.py:MyBlock@layer3", r"C:\my work\my.py:MyBlock@layer3", "layer3"),
        ("my.py:MyBlock(path='b.py:c@d')", "my.py:MyBlock(path='b.py:c@d')", None),
        ("x/../my.py:Outer.Inner", "my.py:Outer.Inner", None),
        ("package.module:MyBlock(bins=(1, 2))@layer3", "package.module:MyBlock(bins=(1, 2))@layer3", "layer3"),
    ],
)
def test_a_block_of_ones_own_is_written_one_way(text, canonical, place):
    candidate = Candidate.parse(text)
    assert str(candidate) == canonical
    assert Candidate.parse(canonical) == candidate
    assert (candidate.place, place_of(canonical)) == (place, place or "")
    assert candidate.own is not None
    assert not is_reference(canonical)
    assert split_candidates(f"nonlocal,{canonical},cbam") == ["nonlocal", canonical, "cbam"]


def test_paths_below_the_folder_are_relative_to_it(folder):
    assert str(Candidate.parse(f"{folder}/own_block.py:MyBlock")) == "own_block.py:MyBlock"
    assert str(Candidate.parse("~/x.py:MyBlock")) == f"{Path.home().as_posix()}/x.py:MyBlock"


def test_names_are_short_in_sentences_and_safe_and_apart_in_folders():
    texts = ["a/my.py:Block", "b/my.py:Block", "a-my.py:Block", "a/my.py:block", "a/my.py:Block(n=2)", "nonlocal"]
    texts += [f"{'x' * 300}/my.py:Block", f"{'x' * 299}y/my.py:Block"]
    names = [slug(text).lower() for text in texts]  # on file systems that fold case too
    assert len(set(names)) == len(texts)
    for name in names:
        assert len(name) < 130
        assert not set(name) & set(r"/\:@ ()")
        assert name[0] not in ".-"
    assert [short_name(text) for text in texts[:6]] == ["Block", "Block", "Block", "block", "Block", "nonlocal"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("own_blok.py:MyBlock", FileNotFoundError, "Did you mean own_block.py"),
        ("own_block.py:Myblok", ValueError, "has no class 'Myblok'. Did you mean MyBlock?"),
        ("own_block.py", ValueError, "Write own_block.py:CLASS. It has: MyBlock, Unused"),
        ("own_block.py::MyBlock", ValueError, "want FILE.py:CLASS"),
        ("own_block.ipynb:MyBlock", ValueError, "is a notebook"),
        ("own_block.py:NoModule", ValueError, "is a class, but no torch.nn.Module"),
        ("own_block.py:MyBlock(redction=2)", TypeError, "Did you mean reduction?"),
        ("own_block.py:MyBlock(reduction=[)", ValueError, "cannot read"),
        (
            "broken.py:MyBlock",
            ValueError,
            "cannot import broken.py: line 3: ModuleNotFoundError: No module named 'nix'",
        ),
        ("far.py:MyBlock", ValueError, "cannot import far.py: broken.py, line 3: ModuleNotFoundError"),
        ("wrong.py:MyBlock", ValueError, "cannot import wrong.py: line 1: SyntaxError: invalid syntax"),
        ("leaves.py:MyBlock", ValueError, r"cannot import leaves.py: line 2: RuntimeError: it called sys.exit\(0\)"),
    ],
)
def test_mistakes_say_what_is_wrong_and_where(folder, text, error, message):
    (folder / "broken.py").write_text("import torch\n\nimport nix\n")
    (folder / "far.py").write_text("import broken\n")
    (folder / "wrong.py").write_text("class :\n")
    (folder / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(error, match=message):
        find_own(parse_address(text))


def test_a_file_leaves_nothing_behind_when_it_is_imported(folder):
    text = "import random, torch, numpy\ntorch.set_default_dtype(torch.float64)\ntorch.manual_seed(1)\nrandom.seed(1)\n"
    (folder / "rude.py").write_text(text + "numpy.random.seed(1)\nfrom torch.nn import Identity\nprint('rude')\n")
    torch.manual_seed(5)
    state, path = torch.get_rng_state(), sys.path.copy()
    find_own(parse_address("rude.py:Identity"))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    assert sys.path == path


def test_neighbours_are_those_of_the_file(folder):
    for name, scale in (("a", 1.0), ("b", 2.0)):
        (folder / name).mkdir()
        (folder / name / "my.py").write_text("from own_helper import SCALE\nfrom torch.nn import Identity as Block\n")
        (folder / name / "own_helper.py").write_text(f"SCALE = {scale}\n")
    modules = [sys.modules[find_own(parse_address(f"{n}/my.py:Block")).make.__module__] for n in "ab"]
    del modules  # Identity stands in torch: what counts is what the files saw
    from lookfar.blocks._importing import import_own

    assert [import_own(f"{name}/my.py").SCALE for name in "ab"] == [1.0, 2.0]


def test_classes_and_functions_themselves_become_text(folder, monkeypatch):
    target = find_own(parse_address("own_block.py:MyBlock"))
    plan = Plan("scenes:lookup", (target.make, functools.partial(target.make, reduction=2), "nonlocal"))
    assert plan.blocks == ("own_block.py:MyBlock", "own_block.py:MyBlock(reduction=2)", "nonlocal")
    assert Plan("x", target.make, host=find_own(parse_address("own_block.py:build")).make).host == "own_block.py:build"
    assert Plan("x", (lookfar.block_info("nonlocal").cls, nn.Identity)).blocks[0] == "nonlocal"

    class Local(nn.Module):
        pass

    prompt = type("Prompt", (nn.Module,), {"__module__": "__main__"})
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    for thing, error, message in (
        (Local, ValueError, "inside a function"),
        (prompt, ValueError, "at a prompt or in a notebook"),
        (nn.Identity(), ValueError, "give its class, Identity"),
        (3, ValueError, "blocks must be names"),
        (functools.partial(target.make, act=nn.ReLU), ValueError, "act=.* cannot be written into a plan"),
    ):
        with pytest.raises(error, match=message):
            Plan("scenes:lookup", (thing,))


def test_the_hash_is_that_of_all_files_behind_a_block(folder):
    def digest():
        return Plan("scenes:lookup", ("own_block.py:MyBlock", "nonlocal")).resolved().sources

    first = digest()
    assert [entry.split()[0] for entry in first] == ["own_block.py"]
    (folder / "another.py").write_text("x = 1\n")
    assert digest() == first
    (folder / "own_helper.py").write_text("SCALE = 0.25\n")
    second = digest()
    assert second != first
    (folder / "own_helper.py").write_text("SCALE = 0.5\n")
    assert digest() == first
    with pytest.raises(FileNotFoundError, match=r"Did you mean own_block\.py"):
        Plan("scenes:lookup", ("own_blok.py:MyBlock",)).resolved()
    assert edited({"sources": first}, "own_block.py:MyBlock@x", "small", second) == ["own_block.py: edited since"]
    assert edited({"sources": first}, "baseline", "own_block.py:build", second) == ["own_block.py: edited since"]
    assert edited({"sources": first}, "nonlocal", "small", second) == []
    assert edited({"sources": first}, "own_block.py:MyBlock", "small", first) == []


def gives(target):
    torch.manual_seed(0)
    return target.build(8)(torch.randn(1, 8, 3, 3))


def test_an_edited_file_is_read_as_it_was(folder, monkeypatch):
    package = folder / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "own_helper.py").write_text("SCALE = 0.5\n")
    text = (folder / "own_block.py").read_text().replace("from own_helper", "from .own_helper")
    (package / "own_block.py").write_text(text)
    for where in ("own_block.py", "pack/own_block.py", "pack.own_block"):
        sources = Plan("scenes:lookup", (f"{where}:MyBlock",)).resolved().sources
        keep(sources, folder / "study")
        before = find_own(parse_address(f"{where}:MyBlock"), source=source_for(sources, where, folder / "study"))
        helper = (folder / where.replace(".own_block", "/own_block.py").removesuffix(".py")).with_name("own_helper.py")
        helper.write_text("SCALE = 4.0\n")
        after = find_own(parse_address(f"{where}:MyBlock"), source=source_for(sources, where, folder / "study"))
        assert torch.equal(gives(before), gives(after)), where
        now = find_own(parse_address(f"{where}:MyBlock"))
        if where.endswith(".py"):
            assert not torch.equal(gives(before), gives(now)), where
        helper.write_text("SCALE = 0.5\n")
    digest = sources[0].split()[1]
    kept = kept_source(folder / "study" / "sources", digest)
    assert kept is not None
    assert kept.module == source_of("pack.own_block").module == "pack.own_block"
    kept.path.write_text("damaged")
    helper.write_text("SCALE = 4.0\n")
    with pytest.raises(ValueError, match="was edited since the study began, and its copy"):
        source_for(sources, where, folder / "study")


def test_cost_and_insertion_take_addresses(folder):
    cost = measure_cost("own_block.py:MyBlock(reduction=2)", 8, (4, 4), repeats=1)
    assert (cost.name, cost.parameters) == ("own_block.py:MyBlock(reduction=2)", 2 * 8 * 4 + 4 + 8)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    names = lookfar.insert(network, "own_block.py:MyBlock", at="0", example=torch.randn(1, 3, 4, 4), reduction=2)
    assert sum(p.numel() for p in network.get_submodule(names[0]).parameters()) == cost.parameters + 1  # its gate
