"""Blocks and hosts of the user's own: how they are written, found and refused, what an edited file does to a study."""

import functools
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lookfar
from lookfar.blocks._own import Target, find_own, parse_address, with_classes
from lookfar.blocks._sources import kept_source, source_of
from lookfar.check import check_module
from lookfar.cost import measure_cost
from lookfar.networks import OwnHost, Segmenter, build_own, resolve_place
from lookfar.study import Plan, promises
from lookfar.study.candidates import Candidate, is_reference, place_of, short_name, slug, split_candidates
from lookfar.study.preflight import preflight
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
        ("own_block.py:NoModule", ValueError, "is a class, but not a torch.nn.Module"),
        ("own_block.py:bild", ValueError, r"has no class 'bild'. Did you mean build\? It has: .*Table, build"),
        ("own_block.py:MyBlock(redction=2)", TypeError, "Did you mean reduction?"),
        ("own_block.py:MyBlock(reduction=[)", ValueError, "cannot read"),
        (
            "broken.py:MyBlock",
            ValueError,
            "cannot import broken.py: line 3: ModuleNotFoundError: No module named 'nix'",
        ),
        ("far.py:MyBlock", ValueError, "cannot import far.py: broken.py, line 3: ModuleNotFoundError"),
        ("wrong.py:MyBlock", ValueError, "cannot import wrong.py: line 1: SyntaxError: invalid syntax"),
        (
            "studies.py:MyBlock",
            ValueError,
            "cannot import studies.py: line 4: ValueError: studies.py starts a study when",
        ),
        ("leaves.py:MyBlock", ValueError, r"cannot import leaves.py: line 2: RuntimeError: it called sys.exit\(0\)"),
    ],
)
def test_mistakes_say_what_is_wrong_and_where(folder, text, error, message):
    (folder / "broken.py").write_text("import torch\n\nimport nix\n")
    (folder / "far.py").write_text("import broken\n")
    (folder / "wrong.py").write_text("class :\n")
    script = "from lookfar import study\nfrom own_block import MyBlock\n\nstudy.run(study.Plan('x', (MyBlock,)))\n"
    (folder / "studies.py").write_text(script)
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


def test_classes_of_layers_are_words_here_too(folder):
    """As of blocks of the registry, but for a constructor that looks a word up itself."""
    (folder / "norms.py").write_text(
        "from torch import nn\n"
        "class Normed(nn.Module):\n"
        "    def __init__(self, channels, norm_layer=nn.BatchNorm2d, act_layer='ReLU'):\n"
        "        super().__init__()\n"
        "        self.norm, self.act = norm_layer(channels), getattr(nn, act_layer)()\n"
    )
    for norm in ("InstanceNorm2d", "nn.InstanceNorm2d"):
        built = find_own(parse_address(f"norms.py:Normed(norm_layer={norm},act_layer=GELU)")).build(4)
        assert (type(built.norm), type(built.act)) == (nn.InstanceNorm2d, nn.GELU)
    make = find_own(parse_address("norms.py:Normed")).make
    plan = Plan("scenes:lookup", (functools.partial(make, norm_layer=nn.InstanceNorm2d),))
    assert plan.blocks == ("norms.py:Normed(norm_layer=InstanceNorm2d)",)


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
    assert edited({"sources": first}, ["own_block.py:MyBlock@x", "small"], second) == ["own_block.py: edited since"]
    assert edited({"sources": first}, ["baseline", "own_block.py:build", None], second) == [
        "own_block.py: edited since"
    ]
    assert edited({"sources": first}, ["nonlocal", "small", "segmentation"], second) == []
    assert edited({"sources": first}, ["own_block.py:MyBlock", "small"], first) == []


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


@pytest.mark.parametrize(
    ("text", "kind", "place"),
    [
        ("own_block.py:build", OwnHost, ""),
        ("own_block.py:build(width=4)", OwnHost, ""),
        ("own_block.py:Features", Segmenter, "head"),
        ("torchvision.models.segmentation:lraspp_mobilenet_v3_large(weights_backbone=None)", OwnHost, ""),
    ],
)
def test_hosts_give_logits_of_the_size_of_the_images(folder, text, kind, place):
    state = torch.get_rng_state()
    network = build_own(find_own(parse_address(text)), 5, size=(48, 64))
    assert isinstance(network, kind)
    assert network.place == place
    assert network.training
    with torch.no_grad():
        assert network.eval()(torch.randn(2, 3, 40, 56)).shape == (2, 5, 40, 56)
    torch.set_rng_state(state)
    if not place:
        with pytest.raises(ValueError, match=r"the host does not say where blocks go: give --place, such as \w+"):
            resolve_place(network, network.place)
    where = {"build": "0", "Features": "deep"}.get(text.partition(":")[2].partition("(")[0], "backbone.16")
    assert lookfar.insert(network, "cbam", at=resolve_place(network, where), example=torch.randn(2, 3, 48, 64))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "own_block.py:Classifier",
            r"Classifier gives \(2×5\) for images .*: want logits \(B, 5, h, w\) for 5 classes",
        ),
        ("own_block.py:build(num_classes=7)", r"build gives \(2×7×12×16\) for images"),
        ("own_block.py:needs_more", r"missing 1 required positional argument: 'depth' \(it takes \(depth, classes\)\)"),
        ("own_block.py:gives_none", "gives_none gives NoneType, want a torch.nn.Module"),
    ],
)
def test_hosts_that_are_none_say_what_is_wanted(folder, text, message):
    with pytest.raises(ValueError, match=message):
        build_own(find_own(parse_address(text)), 5, size=(48, 64))
    with pytest.raises(ValueError, match="pretrained is for timm hosts"):
        build_own(find_own(parse_address(text)), 5, pretrained=True)


def test_arguments_for_classes_and_bands_are_found_by_name(folder):
    def given(make):
        return dict(with_classes(Target("f", make), 5, 4).options)

    assert given(lambda n_channels, n_classes: None) == {"n_channels": 4, "n_classes": 5}
    assert given(lambda classes, in_channels=3, channels=64: None) == {"classes": 5, "in_channels": 4}
    assert given(lambda channels=64, num_labels=2: None) == {"num_labels": 5}
    assert given(lambda width=32: None) == {}


@pytest.mark.parametrize(
    ("blocks", "host", "message"),
    [
        (
            ("own_block.py:Unused",),
            "small",
            r"own_block.py:Unused cannot be studied. Broken: all parameters are reached",
        ),
        (
            ("own_block.py:Halves",),
            "small",
            r"Halves cannot go into small: Halves gives \(2, 32, 8, 8\)",
        ),
        (("cbam",), "own_block.py:Forgets", r"own_block.py:Forgets cannot be studied. Broken: its state is all that"),
    ],
)
def test_what_breaks_a_promise_is_refused_before_the_first_step(folder, monkeypatch, blocks, host, message):
    def here(target, channels, size, *, only, classes=None):
        return check_module(target if classes is None else f"{target}(classes={classes})", channels, size, only=only)

    monkeypatch.setattr("lookfar.check.check_apart", here)
    said = []
    with pytest.raises(ValueError, match=message):
        preflight(Plan("scenes:lookup", blocks, host=host, place="layer4", steps=1), said.append)
    assert not any("keeps what a study needs" in line for line in said)


def test_large_maps_are_asked_about_in_smaller_ones_where_the_block_takes_them(folder, monkeypatch):
    asked = []

    def here(target, channels, size, *, only):
        asked.append(size)
        return check_module(target, channels, size, only=only)

    monkeypatch.setattr("lookfar.check.check_apart", here)
    monkeypatch.setattr(promises, "POSITIONS", 100)
    said = promises.check_block(Candidate.parse("own_block.py:MyBlock@layer3"), 8, (12, 20))
    assert said.startswith("own_block.py:MyBlock keeps what a study needs, and is not the identity")
    assert asked == [(6, 10)]
    promises.check_block(Candidate.parse("own_block.py:Table"), 8, (12, 20))
    assert asked[-2:] == [(6, 10), (12, 20)]
    assert promises._within((1021, 3), 100) == (1021, 3)
