"""`lookfar check`: every classic fault is named in its row, a sound module passes, mistakes are told in one line."""

import functools
import json
import random
import re
import signal
import sys
from pathlib import Path

import pytest
import torch

from lookfar.check import PROMISES, check_module, load
from lookfar.check import run as check_run

FILE = Path(__file__).with_name("faulty.py")


@pytest.fixture
def run(run, monkeypatch):
    """Run the command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr("lookfar.check.show.check_apart", check_module)
    return functools.partial(run, "check")


def ask(name, promise, channels=16, **more):
    return check_module(f"{FILE}:{name}", channels, only=[promise], **more)[promise]


FAULTS = [
    ("SoftmaxOverBatch", "images", r"image \d moves by \d+ % when image 0 changes"),
    ("ConfusesPositions", "positions", r"\w+ at 1\d×\d+: the output is off by \d+ %"),
    ("ExchangesAxes", "positions", r"mirrored|exchanged"),
    ("MixesAxes", "positions", r"\w+ at 1\d×\d+: the output is off by \d+ %"),
    ("PlainList", "registered", r"layers\[0\] \(Conv2d\), layers\[1\] \(Conv2d\).*parameters\(\) is empty"),
    ("MadeInForward", "registered", r"2 tensors that learn are not among parameters\(\)"),
    ("Unused", "reached", r"outside the graph.*spare\.weight, spare\.bias"),
    ("IgnoredOption", "arguments", r"changing reduction=16 changes nothing"),
    ("InPlace", "input", r"in eval forward changes its input by \d+ %"),
    ("KeepsItsFirstSize", "sizes", r"fails at 12×20 after 16×16: RuntimeError"),
    ("KeepsItsNumberOfPositions", "sizes", r"at 20×12 after 12×20 the output differs by [\d.]+ % from a fresh one"),
    ("CrashesOnOne", "odd_sizes", r"fails at 1×1: RuntimeError"),
    ("ChangesDtype", "output_dtype", r"float64 becomes float32; bfloat16 becomes float32"),
    ("Overflows", "large_inputs", r"float16: \d+ % of the output is nan or inf"),
    ("MadeInForward", "deterministic", r"in eval two calls differ by \d+ %"),
    ("RandomInEval", "deterministic", r"in eval two calls differ by \d+ %"),
    ("FailsUnderAutocast", "autocast", r"bfloat16: RuntimeError"),
    ("WantsContiguous", "channels_last", r"RuntimeError: view size is not compatible"),
    ("Prints", "silent", r"writes on standard output: shape shape$"),
    ("WritesBelowPython", "silent", r"writes on standard output: .\"holds\": true"),
    ("KeepsARandomTensor", "state", r"another instance with its state dict differs by \d+ %"),
    ("KeepsAGraph", "copies", r"copy.deepcopy fails: RuntimeError: Only Tensors created explicitly"),
    ("Branches", "compile", r"\w+: .*branch"),
    ("Branches", "export", r"\w+: "),
]


@pytest.mark.parametrize(("name", "promise", "told"), FAULTS, ids=lambda v: v if isinstance(v, str) else None)
def test_a_fault_is_named_in_its_row(name, promise, told):
    outcome = ask(name, promise)
    assert outcome.status == "broken"
    assert re.search(told, outcome.detail), outcome.detail
    assert "\n" not in outcome.detail


@pytest.mark.parametrize(
    ("name", "promise", "told"),
    [
        ("PositionTable", "positions", "parameters that depend on position: table; "),
        ("Coordinates", "positions", "parameters that depend on position: place.weight; "),
        ("Sound", "reached", "gradient exactly zero: key.bias"),
        ("Frozen", "reached", "declared frozen: bias"),
        ("SwitchedOption", "arguments", "changing pad=1 changes nothing with the other options as they are"),
        ("KeepsAFunction", "copies", "cannot be pickled: "),
        ("Convolution", "identity", "as built, the output differs from the input by "),
    ],
)
def test_what_is_no_fault_is_a_fact(name, promise, told):
    outcome = ask(name, promise)
    assert (outcome.status, outcome.detail[: len(told)]) == ("fact", told)


def test_an_ignored_channel_argument_is_told_of_modules_that_run_and_that_do_not(run):
    outcome = ask("IgnoredChannels", "arguments", channels=64)
    assert outcome.status == "broken"
    assert outcome.detail.startswith(
        "channels=32 fails on 32 channels and has the 4,160 parameters of 64: RuntimeError"
    )

    code, out, _ = run(f"{FILE}:IgnoredChannels", "--channels", 16, "--json")
    rows = {row["promise"]: row for row in json.loads(out)["promises"]}
    assert code == 1
    assert rows["runs"]["detail"].startswith("fails on (2×16×16×16): RuntimeError")
    assert "has the 4,160 parameters of 16" in rows["arguments"]["detail"]
    assert rows["images"]["status"] == "not asked"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Exits", "RuntimeError: it called sys.exit(0)"),
        ("CallsItself", "RecursionError: "),
        ("GivesNan", "ArithmeticError: nan or inf in the output"),
    ],
)
def test_what_does_not_run_is_broken_whatever_is_asked(run, name, told):
    code, out, err = run(f"{FILE}:{name}", "--channels", 4, "--only", "images", "--json")
    rows = {row["promise"]: row for row in json.loads(out)["promises"]}
    assert (code, err) == (1, "")
    assert rows["runs"]["status"] == "broken"
    assert rows["runs"]["detail"].startswith(f"fails on (2×4×16×16): {told}")
    assert rows["images"]["status"] == "not asked"


def test_an_interrupt_is_the_users_where_somebody_listens():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            check_module(f"{FILE}:Raises", 4, only=["images"])
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the process of a stranger's module
        outcome = check_module(f"{FILE}:Raises", 4, only=["images"])["runs"]
    finally:
        signal.signal(signal.SIGINT, before)
    assert (outcome.status, outcome.detail) == ("broken", "fails on (2×4×16×16): KeyboardInterrupt")


def test_a_module_that_hangs_is_broken_and_is_given_less_time_afterwards(monkeypatch):
    monkeypatch.setattr(check_run, "CALLS", 1.0)
    monkeypatch.setattr(check_run, "HANGING", 0.5)
    report = check_module(f"{FILE}:Hangs", 4, only=["images", "reached", "input"])
    found = {row.promise: (row.outcome.status, row.outcome.detail) for row in report.rows}
    assert found == {
        "images": ("holds", ""),
        "reached": ("broken", "had not ended after 1 s"),
        "input": ("broken", "had not ended after 0.5 s"),
    }


def test_an_option_with_a_floor_is_no_fault():
    assert ask("FlooredOption", "arguments", channels=32).status == "holds"


def test_kernels_of_a_convolution_do_not_confuse_positions():
    assert ask("Convolution", "positions").status == "holds"


def test_a_sound_module_passes(run, monkeypatch):
    monkeypatch.setattr("lookfar.check.growing.SIZES", {2: [(16, 16), (32, 32), (48, 48)]})
    torch.manual_seed(3)
    random.seed(3)
    code, out, err = run(f"{FILE}:Sound", "--channels", 8, "--option", "heads=2", "--json")
    states = torch.get_rng_state(), random.getstate()
    torch.manual_seed(3)
    random.seed(3)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()

    report = json.loads(out)
    status = {row["promise"]: row["status"] for row in report["promises"]}
    assert (code, err, report["holds"]) == (0, "", True)
    assert list(status) == ["runs", *(p.name for p in PROMISES)]
    facts = {name for name, value in status.items() if value == "fact"}
    assert facts == {"reached", "growth"}
    assert status["onnx"] == ("holds" if pytest.importorskip("onnxruntime") else "not asked")
    growth = next(row["detail"] for row in report["promises"] if row["promise"] == "growth")
    assert float(growth.partition("memory as N^")[2].split(",")[0]) > 1.5  # it builds the weights


def test_strict_fails_growth_and_the_distance_from_the_identity(run):
    arguments = (f"{FILE}:Convolution", "--channels", "8", "--only", "identity")
    code, out, _ = run(*arguments)
    assert code == 0
    assert "fact " in out
    assert out.endswith("0 are broken, 1 fact.\n")
    code, out, _ = run(*arguments, "--strict")
    assert code == 1
    assert "fact, strict" in out
    assert out.endswith("1 is broken.\n")


def test_a_table_has_a_line_a_promise(run):
    code, out, _ = run("squeeze_excitation", "--channels", 16, "--only", "images", "--only", "positions")
    head, header, *rows, end = out.splitlines()
    assert code == 0
    assert head == "squeeze_excitation(16) on 16 channels, 16×16"
    assert header.split() == ["promise", "how"]
    assert [row.split("  ")[0] for row in rows] == [
        "images of a batch do not see each other",
        "positions keep their place",
    ]
    assert end == "2 promises hold, 0 are broken."


def test_sequences_and_videos():
    for size, dims in (((12,), 1), ((2, 4, 6), 3)):
        asked = ["images", "positions", "sizes", "odd_sizes", "channels_last"]
        report = check_module(f"nonlocal(dims={dims})", 8, size, only=asked)
        assert [row.promise for row in report.broken()] == []
        assert report["positions"].status == "holds"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonlokal"], "Did you mean nonlocal"),
        (["nonlocal", "--option", "head=2"], "Did you mean heads?"),
        ([FILE.with_name("faulti.py:Sound")], "Did you mean tests/faulty.py"),
        ([FILE], "It has: Sound, SoftmaxOverBatch"),
        ([f"{FILE}:Sounds"], "Did you mean Sound?"),
        ([f"{FILE}:Sound(head=2)"], "Did you mean heads?"),
        ([f"{FILE}:F"], "has no class 'F'"),
        (["no.such.module:Block"], "cannot import no.such.module: ModuleNotFoundError"),
        ([f"{FILE}:Sound", "--option", "heads"], "want --option NAME=VALUE"),
        ([f"{FILE}:Sound", "--only", "speed"], "no promise is called 'speed'"),
        ([f"{FILE}:Sound", "--channels", 0], "channels must be a positive integer"),
    ],
    ids=lambda v: None,
)
def test_what_cannot_be_loaded_exits_2_in_a_few_lines(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("lookfar: ")
    assert err.count("\n") <= 3
    assert message in " ".join(err.split())


def test_files_that_fail_to_import(run, tmp_path):
    for source, message in (
        ("import nothing_of_this_name\n", "ModuleNotFoundError"),
        ("x = 1\ndef f(:\n", "line 2: SyntaxError"),
        ("x = 1\n\nx.y\n", "line 3: AttributeError"),
        ("class Block: pass\n", "is a class, but not a torch.nn.Module"),
        ("import sys\nsys.exit(0)\n", "it called sys.exit(0)"),
        ("Block = lambda channels: channels\n", "gives int, want a torch.nn.Module"),
    ):
        (tmp_path / "mine.py").write_text(source)
        code, _, err = run(tmp_path / "mine.py:Block")
        assert code == 2
        assert message in " ".join(err.split())


def test_files_of_packages_import_relatively(tmp_path):
    package = tmp_path / "a_package_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text("from torch.nn import Conv2d\n")
    (package / "mine.py").write_text(
        "from .parts import Conv2d\nclass Mine(Conv2d):\n"
        "    def __init__(self, k, dim):\n        super().__init__(dim, dim, k)\n"
    )
    path = sys.path.copy()
    target = load(f"{package / 'mine.py'}:Mine(k=1)")
    assert target.channels_argument == "dim"
    assert target.build(6).weight.shape == (6, 6, 1, 1)
    assert sys.path == path


def test_one_failing_question_does_not_stop_the_others(monkeypatch):
    def ask_in_vain(subject):
        raise KeyError("nothing\nto see")

    def ask_forever(subject):
        while True:
            torch.zeros(1)

    asked = [
        check_run.Promise("vain", "vain", ask_in_vain),
        check_run.Promise("forever", "forever", ask_forever, slow=True),
    ]
    monkeypatch.setattr(check_run, "PROMISES", (*asked, PROMISES[0]))
    monkeypatch.setattr(check_run, "SECONDS", 0.5)
    report = check_module(f"{FILE}:Convolution", 4)
    assert [(row.promise, row.outcome.status) for row in report.rows] == [
        ("runs", "holds"),
        ("vain", "broken"),
        ("forever", "not asked"),
        ("images", "holds"),
    ]
