"""The help: whole at any width, every value explained, every default said and true; what a shell completes."""

import dataclasses
import os
import re
import subprocess
import sys

import pytest
import typer

from lookfar import cli
from lookfar.cli import _help
from lookfar.data import usual
from lookfar.study import Plan

GROUP = typer.main.get_command(cli.app)
COMMANDS = GROUP.commands
# nothing takes the place of these: without them a thing is not done, not said, or found in the data
WITHOUT_DEFAULT = {
    "--blocks", "--data", "--host-weights", "--weights", "--also-val", "--ignore", "--labels", "--classes", "--exif",
    "--kind", "--family", "--option", "--only", "--query", "--network", "--out",
}  # fmt: skip


def helped(command, width):
    context = typer.main.get_command(cli.app).context_class(command, info_name=command.name)
    return _help.page(command, context, width)


def options(command):
    return [param for param in command.params if param.param_type_name != "argument"]


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("name", COMMANDS)
def test_names_and_values_are_never_cut(name, width):
    text = helped(COMMANDS[name], width)
    for param in options(COMMANDS[name]):
        assert re.search(rf"^  {re.escape(_help.name_of(param))}(  |$)", text, re.MULTILINE), param.name
        assert " ".join(_help.explained(param).split()) in " ".join(text.split())
    assert "…" not in text
    body = [line for line in text.splitlines() if not line.startswith(("Example: ", "Usage: ", "       "))]
    long = [line for line in body if len(line) > width and len(line.split()) > 1]
    assert long == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_wants_and_what_holds_without_it(name):
    for param in COMMANDS[name].params:
        assert param.help, f"{name} {param.name} is not explained"
        if param.param_type_name == "argument" or _help.is_switch(param):
            continue
        assert param.metavar, f"{name} {param.opts[0]} does not say what value it wants"
        said = _help.explained(param)
        wanted = param.opts[0] not in WITHOUT_DEFAULT
        assert re.search(r"\[(default: .+|required)\]$", said) or not wanted, f"{name} {param.opts[0]}: no default"
        assert not re.search(r"\(default|\(0\.5\)", said)


def test_defaults_of_a_study_are_those_of_its_plan():
    plan = {field.name: field.default for field in dataclasses.fields(Plan)}
    said = {param.name: _help.explained(param) for param in options(COMMANDS["study"])}
    for name, default in plan.items():
        if name in said and isinstance(default, int | float | str) and not isinstance(default, bool) and default:
            assert f"[default: {default:g}" in said[name] if not isinstance(default, str) else default in said[name]
    assert f"[default: {usual('nowhere').steps}" in said["steps"]
    assert f"[default: {usual('nowhere').host}" in said["host"]
    images = [usual(data).batch_size for data in ("nowhere", "cifar10:x")]
    assert f"[default: {images[0]} with masks, {images[1]} with labels" in said["batch_size"]
    assert "[default: --flip]" in said["flip"]
    assert plan["flip"] is True


def test_options_of_a_study_stand_in_groups():
    text = helped(COMMANDS["study"], 80)
    titles = [line for line in text.splitlines() if line and not line.startswith((" ", "Usage", "Example", "Compare"))]
    assert {"Arguments", "Data", "Network and blocks", "Training", "Judging", "Running", "Options"} <= set(titles)
    last = text.partition("\nOptions\n")[2]
    assert len(re.findall(r"^  -", last, re.MULTILINE)) == 1  # the help itself


def completed(words):
    """What bash is offered for the last word."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['lookfar']; from lookfar.cli import main; main()"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "_LOOKFAR_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        },
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("lookfar stu", "study"),
        ("lookfar study --see", "--seeds"),
        ("lookfar study --blocks nonlocal,criss", "nonlocal,criss_cross"),
        ("lookfar blocks --kind up", "upsampler"),
    ],
)
def test_a_shell_completes(words, offered):
    assert offered in completed(words)


def test_places_and_data_are_completed():
    from lookfar.cli import _complete

    assert _complete.block_names("nonlocal(heads=2)@layer3") == ["nonlocal(heads=2)@layer3"]
    assert _complete.data_sets("camv") == ["camvid:"]
    assert "layer4" in _complete.places("")
    assert "sparse" in _complete.families("sp")
