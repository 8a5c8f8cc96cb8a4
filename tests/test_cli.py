"""The command line as a user meets it: output, errors, exit codes."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from lookfar import __version__, blocks, cli
from lookfar.cost import growth
from lookfar.data import open_data


def lookfar(*arguments, **environment):
    """Run the command in a process of its own: (exit code, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-m", "lookfar.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100", **environment},
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def assert_readable(err):
    """One message in at most three lines that fit a terminal, and no traceback."""
    lines = err.splitlines()
    assert lines[0].startswith("lookfar: "), err
    assert len(lines) <= 3, err
    assert max(map(len, lines)) <= 80, err
    assert "Traceback" not in err, err


def test_a_misspelt_block_ends_in_one_line_with_the_nearest_names():
    code, out, err = lookfar("cost", "position_atention")
    assert (code, out) == (2, "")
    said = " ".join(err.split())
    assert said.startswith("lookfar: no block is called 'position_atention'. Did you mean position_attention")
    assert said.endswith("? `lookfar blocks` lists all.")
    assert_readable(err)


def test_versions_are_said_the_same_everywhere():
    code, out, err = lookfar("--version")
    assert (code, err) == (0, "")
    assert re.match(rf"lookfar {re.escape(__version__)} \(torch \d", out)
    root = Path(__file__).parents[1]
    assert f'version = "{__version__}"' in (root / "pyproject.toml").read_text(encoding="utf-8")
    assert f"version: {__version__}\n" in (root / "CITATION.cff").read_text(encoding="utf-8")


def test_ctrl_c_while_it_is_being_imported_leaves_no_traceback():
    pressed = """
import sys
class Pressed:
    def find_spec(self, name, *_):
        if name == "lookfar.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Pressed())
from lookfar.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", pressed], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    "arguments", [["blocks"], ["blocks", "*local*", "--json"], ["blocks", "--kind", "layer"]], ids=" ".join
)
def test_lists_of_blocks_load_nothing_heavy(arguments):
    code = f"""
import sys
from lookfar import cli
sys.argv = ["lookfar", *{arguments!r}]
cli.main()
assert not {{"torch", "timm", "numpy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_help_loads_nothing_heavy():
    code = "import sys; from lookfar import cli; assert not {'torch', 'timm', 'rich.table'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cost", "position_attention(reducton=4)"], "Did you mean reduction?"),
        (["cost", "position_attention(reduction=4"], "position_attention(option=value, ...)"),
        (["cost", "position_attention", "--size", "64by64"], "such as 64x64"),
        (["cost", "position_attention", "--size", "0x64"], "positive whole numbers"),
        (["cost", "position_attention", "--channels", "0"], "channels must be a positive integer, got 0"),
        (["cost", "position_attention", "--device", "tpu"], "'cpu' or 'cuda'"),
        (["cost", "nonlocal", "--host", "resnet18"], "--host and --at belong together"),
        (["cost", "nonlocal", "--host", "small", "--at", "layer4", "--grow"], "--grow is for a block by itself"),
        (["blocks", "criss_croß"], "Did you mean criss_cross?"),
        (["blocks", "--kind", "contxt"], "there are context, layer"),
        (["blocks", "--family", "none"], "there are pairwise, global"),
    ],
    ids=" ".join,
)
def test_mistakes_of_the_user_exit_2(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert_readable(err)
    assert message in " ".join(err.split())


ODD = ["0", "-1", "1.5", "x", "", "nan", "1000000000000"]
FINE = {  # odd values that are fine, by option
    "--steps": {"1000000000000"}, "--batch-size": {"1000000000000"}, "--lr": {"1.5", "1000000000000"},
    "--trial": {"0"}, "--clip": {"0", "1.5", "1000000000000"}, "--margin": {"0", "1.5"}, "--groups": {"0"},
    "--label-smoothing": {"0"}, "--mixup": {"0"}, "--cutmix": {"0"},
}  # fmt: skip
SWITCHES = {
    "--json", "--grow", "--backward", "--strict", "--pretrained", "--skip-bad", "--tensorboard", "--browser", "--force",
    "--whole", "--flip", "--prepare", "--help",
}  # fmt: skip
COMMANDS = {
    "blocks": ["squeeze_excitation"],
    "cost": ["squeeze_excitation", "--size", "4x4"],
    "check": ["squeeze_excitation", "--size", "4x4", "--channels", "16", "--only", "images"],
    "study": ["--data", "scenes:lookup", "--blocks", "squeeze_excitation"],
    "report": [],
    # there is no such network: what follows is refused before or after that is found
    "predict": ["nowhere.png", "--network", "nowhere.pth", "--out", "seen"],
    "evaluate": ["--network", "nowhere.pth"],
    "train": ["--network", "small", "--data", "nowhere", "--out", "seen"],
    "explore": ["nowhere"],
    "simplify": ["nowhere", "--out", "there"],
    "scan": ["nowhere", "--blocks", "squeeze_excitation"],
    "claims": ["c99"],
    "inspect": ["nowhere"],
    "export": ["nowhere.pth", "--out", "there.onnx"],
}


def options():
    """Every option of every command that takes a value, as the program itself knows them."""
    for command in typer.main.get_command(cli.app).commands.values():
        for param in command.params:
            for option in param.opts:
                if option.startswith("--") and option not in SWITCHES:
                    yield command.name, option


def test_options_are_found():
    found = set(options())
    assert {("cost", "--size"), ("study", "--seeds"), ("blocks", "--kind"), ("check", "--only")} <= found
    assert {name for name, _ in found} | {"report"} == set(COMMANDS)


@functools.lru_cache
def data_of(spec, options):
    return open_data(spec, **dict(options))


@pytest.mark.parametrize(("command", "option"), [pytest.param(*found, id=" ".join(found)) for found in options()])
def test_odd_values_of_every_option(run, monkeypatch, tmp_path, command, option):
    """Refused in at most three readable lines, or one of the few that are fine; nothing is taken in silence."""
    monkeypatch.setattr("lookfar.study.running._run_missing", lambda *_: None)
    monkeypatch.setattr("lookfar.study.single._run", lambda *_: 0)
    monkeypatch.setattr("lookfar.study.command._finish", lambda *_: 0)
    # its scenes are drawn once for all that is asked here
    monkeypatch.setattr("lookfar.data.open_data", lambda spec, **more: data_of(spec, tuple(sorted(more.items()))))
    for number, value in enumerate(ODD):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        code, _, err = run(command, *COMMANDS[command], f"{option}={value}")
        if command == "study" and (
            value in FINE.get(option, ()) or (option == "--out" and value)
        ):  # any name is a folder
            assert code == 0, err
            continue
        assert code == 2, f"{option}={value} gives {code}: {err}"
        assert_readable(err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["cost"],
        ["cost", ""],
        ["cost", "nonlocal("],
        ["cost", "nonlocal(reduction=0)", "--size", "4x4"],
        ["cost", "nonlocal(reduction=x)", "--size", "4x4"],
        ["cost", "nonlocal(modes=gaussian)"],
        ["cost", "nonlocal", "--size", "16"],
        ["cost", "nonlocal", "--size", "4x4x4"],
        ["cost", "nonlocal(dims=3)", "--size", "16x16"],
        ["cost", "nonlocal", "nonlocal(dims=1)", "--size", "16"],
        ["cost", "nonlocal", "--sise", "4x4"],
        ["cost", "nonlocal", "--grow=3"],
        ["cost", "nonlocal", "--channels"],
        ["check"],
        ["check", ""],
        ["check", "nonlocal", "--size", "16"],
        ["check", "nonlocal(dims=1)", "--size", "4x4"],
        ["study"],
        ["study", "nowhere.yaml"],
        ["study", "--data", "scenes:lookup"],
        ["study", "--data", "scenes:lookup", "--blocks", "nonlocal,nonlocal"],
        ["report"],
        ["report", "nowhere"],
        ["report", ""],
        ["blocks", ""],
        ["blocks", "nonlocal", "other"],
        ["nothing"],
    ],
    ids=" ".join,
)
def test_odd_commands_are_refused_readably(run, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2
    assert not out or out.startswith("lookfar study · ")  # its first line stands before anything slow
    assert_readable(err)


def test_sizes_of_sequences_and_videos(run):
    for block, size, shown in [("nonlocal(dims=1)", "16", "16"), ("nonlocal(dims=3)", "2x4x4", "2×4×4")]:
        code, out, err = run("cost", block, "--size", size, "--channels", "4")
        assert (code, err) == (0, "")
        assert out.splitlines()[0].endswith(f", {shown}")


def test_a_name_and_a_kind_that_it_is_not(run):
    assert "no block fits" in run("blocks", "nonlocal", "--kind", "layer")[1]


def test_cost_prints_units_above_right_aligned_numbers(run):
    code, out, err = run("cost", "position_attention", "pam(reduction=2)", "--size", "12x20", "--channels", "32")
    conditions, header, *rows = out.splitlines()
    assert (code, err) == (0, "")
    assert conditions == "forward, 32 channels, float32, cpu (1 thread), 12×20"
    assert header.split() == ["block", "parameters", "GFLOP", "time", "ms", "memory", "MB"]
    assert [row.split()[:3] for row in rows] == [
        ["position_attention", "1321", "0.00476"],
        ["pam(reduction=2)", "2113", "0.00651"],
    ]
    assert len({len(row) for row in (header, *rows)}) == 1


def test_cost_as_json(run):
    code, out, _ = run("cost", "position_attention", "--size", "6x5", "--channels", "8", "--json", "--backward")
    got = json.loads(out)
    assert code == 0
    assert (got["name"], got["size"], got["channels"], got["backward"]) == ("position_attention", [6, 5], 8, True)
    assert min(got["flops"], got["latency_ms"], got["memory_mb"], got["parameters"]) > 0


def test_cost_grows(run, monkeypatch):
    small = functools.partial(growth, sizes=[(16, 16), (24, 24), (32, 32)])
    monkeypatch.setattr("lookfar.cost.printing.growth", small)
    code, out, _ = run("cost", "position_attention", "--size", "6x5", "--channels", "8", "--grow")
    lines = out.splitlines()
    assert code == 0
    assert lines[4].startswith("position_attention: forward, 8 channels")
    assert [line.split()[:2] for line in lines[6:9]] == [["16×16", "256"], ["24×24", "576"], ["32×32", "1024"]]
    assert lines[9].startswith("time grows as N^")
    assert lines[9].endswith("(formula: time N^2 C, memory N C)")


def test_blocks_lists_every_block(run):
    code, out, _ = run("blocks")
    header, *rows, filters = out.splitlines()
    assert code == 0
    assert header.split()[:3] == ["block", "paper", "kind"]
    assert header.endswith("verified against")
    assert [row.split()[0] for row in rows] == blocks.list_blocks()
    assert all(name in filters for name in ("bilateral", "nonlocal_means", "mean_shift"))


def test_blocks_filters(run):
    names = [line.split()[0] for line in run("blocks", "*_attention")[1].splitlines()[1:]]
    assert names == blocks.list_blocks("*_attention")
    names = [line.split()[0] for line in run("blocks", "--family", "sparse")[1].splitlines()[1:]]
    assert names == blocks.list_blocks(family="sparse")
    assert "no block fits" in run("blocks", "*nothing*")[1]


def test_blocks_as_json(run):
    listed = json.loads(run("blocks", "--json")[1])
    assert [block["name"] for block in listed] == blocks.list_blocks()
    (one,) = json.loads(run("blocks", "pam", "--json")[1])
    assert one["parameters_256"] == 82241
    assert {"reduction": 8, "zero_init": True}.items() <= one["options"].items()


@pytest.mark.parametrize("name", blocks.list_blocks())
def test_page_of_a_block(run, name):
    code, out, _ = run("blocks", name)
    info = blocks.block_info(name)
    assert code == 0
    assert out.startswith(f"{name}: {info.title}\n")
    assert f'lookfar.create_block("{name}", 256)' in out
    for option in info.options:
        line = next(line for line in out.splitlines() if line.startswith(f"- {option}="))
        assert not line.endswith(":"), f"the docstring of {info.cls.__name__} says nothing about {option}"
    assert all(source in out for source in info.verified)
    assert "``" not in out


def test_it_runs_as_a_module():
    """Where the folder of programs is not on the path."""
    done = subprocess.run([sys.executable, "-m", "lookfar", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert __version__ in done.stdout
