"""Ask a module everything: each promise by itself, within its time, whatever becomes of the others."""

import contextlib
import io
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import FrameType

import torch

from lookfar._options import positive
from lookfar._tables import by_size, said
from lookfar.blocks._own import Target, with_classes
from lookfar.check import calls, growing, manners, parameters, positions, precision, programs
from lookfar.check.loading import load
from lookfar.check.outcome import Outcome, Report, Row, broken, holds, not_asked
from lookfar.check.subject import Subject, outputs, random_state_kept
from lookfar.cost import size_for

SIZES = {1: (64,), 2: (16, 16), 3: (4, 8, 8)}  # of the input where none is given
SECONDS = 300.0  # that one promise may take where it measures, compiles or exports
CALLS = 120.0  # where it only calls the module: after that it hangs
HANGING = 20.0  # and again, once it has been seen to hang
FIRST = 60.0  # the first call of all
RUNS = "runs on a map"


@dataclass(frozen=True)
class Promise:
    """A question.

    Attributes:
        name: Short, for programs.
        title: For people.
        ask: Gives the outcome; an exception is one too.
        always: Also asked of a module that does not run.
        slow: What is slow is the question; that it takes too long is no fault of the module.
    """

    name: str
    title: str
    ask: Callable[[Subject], Outcome]
    always: bool = False
    slow: bool = False


PROMISES = (
    Promise("images", "images of a batch do not see each other", calls.images_apart),
    Promise("positions", "positions keep their place", positions.positions_kept),
    Promise("registered", "all parameters are registered", parameters.registered, always=True),
    Promise("reached", "all parameters are reached", parameters.reached),
    Promise("arguments", "arguments are honoured", calls.arguments, always=True),
    Promise("input", "the input is not overwritten", calls.input_kept),
    Promise("silent", "nothing is written on the terminal", manners.silent),
    Promise("copies", "copies are equal", manners.copies),
    Promise("state", "its state is all that it needs", manners.state),
    Promise("sizes", "one size after another", calls.one_size_after_another),
    Promise("odd_sizes", "odd and 1×1 sizes", calls.odd_sizes),
    Promise("output_dtype", "output dtype is the input's", precision.output_dtype),
    Promise("large_inputs", "finite on inputs 30 times larger", precision.large_inputs),
    Promise("dtypes", "float64 to float16", precision.dtypes),
    Promise("autocast", "autocast", precision.autocast),
    Promise("channels_last", "channels_last", precision.channels_last),
    Promise("deterministic", "deterministic", calls.deterministic),
    Promise("identity", "identity at insertion", calls.identity),
    Promise("growth", "growth of time and memory", growing.grows, slow=True),
    Promise("compile", "compiles in one graph", programs.compiles, slow=True),
    Promise("export", "exports at any size", programs.exports, slow=True),
    Promise("onnx", "ONNX at any size", programs.exports_onnx, slow=True),
)


def check_module(
    target: str | Target,
    channels: int = 64,
    size: Sequence[int] | None = None,
    *,
    options: Sequence[str] = (),
    only: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Ask a module what blocks of this library promise.

    Args:
        target: ``my_module.py:MyBlock``, ``package.module:MyBlock`` or a block's name, with ``(option=value, ...)``
            behind it if wanted; or what :func:`load` gave.
        channels: Channels of the input, given to the constructor.
        size: Spatial size of the input: 16×16, for ``dims=1`` 64 and for ``dims=3`` 4×8×8 positions by default.
        options: Further options of the constructor, ``"heads=4"``.
        only: Names of the promises to ask; empty asks all, see :data:`PROMISES`.
        progress: Called with the title of every promise before it is asked.

    Returns:
        A row a promise. The caller's random state is left as it was.

    Raises:
        ValueError: The module cannot be imported or built, a promise that does not exist.
        FileNotFoundError: The file does not exist.
        TypeError: An option that a block of ours does not take.

    >>> report = check_module("squeeze_excitation", 32, only=["images", "sizes"])
    >>> [(row.promise, row.outcome.status) for row in report.rows]
    [('images', 'holds'), ('sizes', 'holds')]
    """
    check_names(only)
    subject = prepare(target, channels, size, options)
    rows = []
    with undisturbed():
        for row in rows_of(subject, only, lambda _, title: progress(title)):
            if row.promise != "runs" or not only or row.outcome.status == "broken":
                rows.append(row)
    return Report(subject.target.written(channels), channels, subject.size, tuple(rows))


def check_names(only: Sequence[str]) -> None:
    """Raise a ValueError for a promise that does not exist."""
    unknown = sorted(set(only) - {p.name for p in PROMISES})
    if unknown:
        raise ValueError(f"no promise is called {unknown[0]!r}; there are {', '.join(p.name for p in PROMISES)}")


def prepare(
    target: str | Target,
    channels: int,
    size: Sequence[int] | None,
    options: Sequence[str],
    classes: int | None = None,
) -> Subject:
    """Load a module and build it once; raises as :func:`check_module` does."""
    positive("channels", channels)
    with undisturbed():
        loaded = load(target, options) if isinstance(target, str) else target
        loaded = loaded if classes is None else with_classes(loaded, classes, channels)
        dims = loaded.options.get("dims", 2)
        asked: tuple[int, ...] = SIZES.get(dims, SIZES[2]) if size is None else tuple(size)
        if size is not None and isinstance(target, str) and ":" not in target:  # a block of ours knows its axes
            asked = size_for(f"{loaded.name}(dims={dims})" if "dims" in loaded.options else loaded.name, size)
        subject = Subject(loaded, channels, asked)
        subject.build()  # a module that cannot be built is a mistake of the user
    return subject


def rows_of(
    subject: Subject, only: Sequence[str], asking: Callable[[str, str], None], *, hangs: bool = False
) -> Iterator[Row]:
    """The row of each promise as soon as it is answered, the first whether it runs at all.

    Args:
        subject: As :func:`prepare` gives it.
        only: Names of the promises to ask; empty asks all.
        asking: Called with name and title of every promise before it is asked.
        hangs: It has been seen to hang, and is given less time.
    """
    asking("runs", RUNS)
    subject, runs = _in_its_dtype(subject)
    yield Row("runs", RUNS, runs)
    for promise in PROMISES:
        if only and promise.name not in only:
            continue
        if runs.status == "broken" and not promise.always:
            yield Row(promise.name, promise.title, not_asked("it does not run"))
            continue
        asking(promise.name, promise.title)
        limit = seconds_for(promise, hangs=hangs)
        try:
            with _limited(limit):
                outcome = promise.ask(subject)
        except _TooLong:
            hangs = hangs or not promise.slow
            outcome = too_long(promise, limit)
        except BaseException as error:
            outcome = broken(said(_of_module(error)))
        yield Row(promise.name, promise.title, outcome)


def seconds_for(promise: Promise, *, hangs: bool = False) -> float:
    """How long a promise may take."""
    return SECONDS if promise.slow else min(HANGING, CALLS) if hangs else CALLS


def too_long(promise: Promise, seconds: float) -> Outcome:
    """What it means that the time was not enough."""
    return not_asked(f"stopped after {seconds:g} s") if promise.slow else broken(f"had not ended after {seconds:g} s")


def _of_module(error: BaseException) -> BaseException:
    """The error, if it is the module's: Ctrl-C is the user's, where somebody listens to it."""
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        raise error
    return RuntimeError(f"it called sys.exit({error.code!r})") if isinstance(error, SystemExit) else error


def _in_its_dtype(subject: Subject) -> tuple[Subject, Outcome]:
    """The subject in the widest dtype that its module runs in; errors are reported for float32."""
    error: BaseException | None = None
    for dtype in (torch.float64, torch.float32):
        tried = replace(subject, dtype=dtype)
        try:
            with _limited(FIRST):
                module = tried.make()
                inputs = tried.inputs(module)
                with torch.no_grad():
                    found = outputs(module, inputs)
                if not all(bool(y.isfinite().all()) for y in found):
                    raise ArithmeticError("nan or inf in the output")
        except _TooLong:
            return tried, broken(f"had not ended after {FIRST:g} s")
        except BaseException as e:
            error = _of_module(e)
            continue
        shapes = ", ".join(f"({by_size(y.shape)})" for y in found)
        return tried, holds(f"({by_size(inputs[0].shape)}) -> {shapes}")
    assert error is not None
    shape = (2, subject.channels, *subject.size)
    return replace(subject, dtype=torch.float32), broken(f"fails on ({by_size(shape)}): {said(error)}")


class _TooLong(BaseException):
    """Time is up; no `except Exception` of a module or an exporter swallows it."""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise after so many seconds, where signals reach: in the main thread of a Unix process without an alarm."""
    here = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if not here or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """The random state is kept; warnings and output of modules and exporters are suppressed."""
    with (
        random_state_kept(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        yield
