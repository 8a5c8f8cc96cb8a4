"""What a user types: public names, names of blocks and options, and how quickly they are there."""

import difflib
import subprocess
import sys
import textwrap
from pathlib import Path

import api
import pytest

import lookfar
from lookfar.blocks import block_info, create_block, list_blocks, parse_block


def test_public_names_and_signatures_are_those_listed() -> None:
    """No name, option, default or command changes unseen: a change that is meant is written by the command."""
    found, wanted = api.listed().splitlines(), api.FILE.read_text(encoding="utf-8").splitlines()
    changes = list(difflib.unified_diff(wanted, found, "listed", "found", lineterm="", n=0))
    assert not changes, "\n".join(["`make api` writes this, if it is meant:", *changes])


def test_public_names_resolve() -> None:
    for name in lookfar.__all__:
        assert getattr(lookfar, name) is not None
    assert set(dir(lookfar)) >= set(lookfar.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'attention'"):
        lookfar.attention  # noqa: B018


def test_blocks_by_glob_kind_and_family() -> None:
    assert list_blocks() == sorted(list_blocks())
    assert "position_attention" in list_blocks("*attention")
    assert "position_attention" in list_blocks(kind="context", family="pairwise")
    assert list_blocks("*gaussian*") == []


def test_every_alias_means_one_block() -> None:
    aliases = [alias for name in list_blocks() for alias in block_info(name).aliases]
    assert len(aliases) == len(set(aliases))
    assert not set(aliases) & set(list_blocks())
    for name in list_blocks():
        info = block_info(name)
        assert info.name == name
        assert block_info(info.cls) is info
        assert all(block_info(alias) is info for alias in info.aliases)
    assert parse_block("pam(reduction=4)") == ("position_attention", {"reduction": 4})


@pytest.mark.parametrize("written", ["NL", "Nonlocal", "non-local", "Non Local", "NonLocal", "NON_LOCAL"])
def test_names_are_found_however_they_are_written(written: str) -> None:
    assert block_info(written).name == "nonlocal"


def test_unknown_block_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no block is called 'position_atention'. Did you mean position_attention"):
        create_block("position_atention", 16)
    with pytest.raises(ValueError, match="`lookfar blocks` lists all"):
        block_info("xyzzy")
    with pytest.raises(ValueError, match="int is not a registered block"):
        block_info(int)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "here"),
    [
        ("num_heads", "heads"),
        ("in_channels", "channels"),
        ("dim", "channels"),
        ("d_model", "channels"),
        ("ratio", "ratio=1/16 is reduction=16"),
        ("norm_cfg", r"norm_layer \(a class"),
        ("sub_sample", "subsample"),
        ("inter_channels", "inner_channels"),
    ],
)
def test_options_of_other_libraries_are_translated(option: str, here: str) -> None:
    with pytest.raises(TypeError, match=f"has no option '{option}'. Here it is called .*{here}.*It takes: .*reduction"):
        create_block("position_attention", 16, **{option: 1})


@pytest.mark.parametrize("channels", [0, -4, 16.0, "16", True, None])
def test_channels_are_a_positive_integer(channels: object) -> None:
    with pytest.raises(ValueError, match=r"channels must be a positive integer, got"):
        create_block("position_attention", channels)  # type: ignore[arg-type]


def _fresh(code: str) -> str:
    """What a new Python prints."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    ).stdout


def test_import_and_help_stay_light() -> None:
    out = _fresh("""
        import sys
        import lookfar
        heavy = ("torch", "timm", "torchvision", "scipy", "lightning_fabric", "numpy")
        print([name for name in heavy if name in sys.modules])
        from lookfar import cli
        sys.argv = ["lookfar", "--help"]
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code, end.code
        print([name for name in heavy if name in sys.modules])
    """)
    lines = out.splitlines()
    assert lines[0] == "[]"
    assert lines[-1] == "[]"
    assert "Usage" in out


def test_ops_are_found_in_their_folder() -> None:
    """Each by its own name, though files have the same ones; type checkers are told the same names."""
    from lookfar import ops
    from lookfar.ops import _stub

    assert {"attention", "attention_reference", "attention_weights", "sample_at"} <= set(ops.__all__)
    assert all(callable(getattr(ops, name)) for name in ops.__all__)
    assert not {"widened", "Window", "F", "to_tokens"} & set(ops.__all__)
    written = Path(ops.__file__).with_suffix(".pyi").read_text()
    assert written == _stub.stub(), "python -m lookfar.ops._stub writes it"
