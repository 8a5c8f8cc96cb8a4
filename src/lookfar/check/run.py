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
from lookfar._tables import by_size
from lookfar.check import calls, growing, parameters, positions, precision, programs
from lookfar.check.loading import Target, load
from lookfar.check.outcome import Outcome, Report, Row, broken, holds, not_asked, said
from lookfar.check.subject import Subject, outputs, random_state_kept
from lookfar.cost import size_for

SIZES = {1: (64,), 2: (16, 16), 3: (4, 8, 8)}  # of the input where none is given
SECONDS = 300.0  # that one promise may take


@dataclass(frozen=True)
class Promise:
    """A question.

    Attributes:
        name: Short, for programs.
        title: For people.
        ask: Gives the outcome; an exception is one too.
        always: Also asked of a module that does not run.
    """

    name: str
    title: str
    ask: Callable[[Subject], Outcome]
    always: bool = False


PROMISES = (
    Promise("images", "images of a batch do not see each other", calls.images_apart),
    Promise("positions", "positions keep their place", positions.positions_kept),
    Promise("registered", "all parameters are registered", parameters.registered, always=True),
    Promise("reached", "all parameters are reached", parameters.reached),
    Promise("arguments", "arguments are honoured", calls.arguments, always=True),
    Promise("input", "the input is not overwritten", calls.input_kept),
    Promise("sizes", "one size after another", calls.one_size_after_another),
    Promise("odd_sizes", "odd and 1×1 sizes", calls.odd_sizes),
    Promise("output_dtype", "output dtype is the input's", precision.output_dtype),
    Promise("large_inputs", "finite on inputs 30 times larger", precision.large_inputs),
    Promise("dtypes", "float64 to float16", precision.dtypes),
    Promise("autocast", "autocast", precision.autocast),
    Promise("channels_last", "channels_last", precision.channels_last),
    Promise("deterministic", "deterministic", calls.deterministic),
    Promise("identity", "identity at insertion", calls.identity),
    Promise("growth", "growth of time and memory", growing.grows),
    Promise("compile", "compiles in one graph", programs.compiles),
    Promise("export", "exports at any size", programs.exports),
    Promise("onnx", "ONNX at any size", programs.exports_onnx),
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
    unknown = sorted(set(only) - {p.name for p in PROMISES})
    if unknown:
        raise ValueError(f"no promise is called {unknown[0]!r}; there are {', '.join(p.name for p in PROMISES)}")
    positive("channels", channels)
    loaded = load(target, options) if isinstance(target, str) else target
    dims = loaded.options.get("dims", 2)
    asked: tuple[int, ...] = SIZES.get(dims, SIZES[2]) if size is None else tuple(size)
    if size is not None and isinstance(target, str) and ":" not in target:  # a block of ours says which axes it has
        asked = size_for(f"{loaded.name}(dims={dims})" if "dims" in loaded.options else loaded.name, size)
    subject = Subject(loaded, channels, asked)
    with _undisturbed():
        subject.build()  # a module that cannot be built is a mistake of the user
        subject, runs = _in_its_dtype(subject)
        rows = [] if only and runs.status != "broken" else [Row("runs", "runs on a map", runs)]
        for promise in PROMISES:
            if only and promise.name not in only:
                continue
            progress(promise.title)
            if runs.status == "broken" and not promise.always:
                outcome = not_asked("it does not run")
            else:
                outcome = _ask(promise, subject)
            rows.append(Row(promise.name, promise.title, outcome))
    return Report(loaded.written(channels), channels, subject.size, tuple(rows))


def _in_its_dtype(subject: Subject) -> tuple[Subject, Outcome]:
    """The subject in the widest dtype that its module runs in; errors are reported for float32."""
    error: Exception | None = None
    for dtype in (torch.float64, torch.float32):
        tried = replace(subject, dtype=dtype)
        try:
            module = tried.make()
            inputs = tried.inputs(module)
            with torch.no_grad():
                found = outputs(module, inputs)
            shapes = ", ".join(f"({by_size(y.shape)})" for y in found)
            return tried, holds(f"({by_size(inputs[0].shape)}) -> {shapes}")
        except Exception as e:
            error = e
    assert error is not None
    shape = (2, subject.channels, *subject.size)
    return replace(subject, dtype=torch.float32), broken(f"fails on ({by_size(shape)}): {said(error)}")


def _ask(promise: Promise, subject: Subject) -> Outcome:
    try:
        with _limited(SECONDS):
            return promise.ask(subject)
    except _TooLong:
        return not_asked(f"stopped after {SECONDS:.0f} s")
    except Exception as error:
        return broken(said(error))


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
def _undisturbed() -> Iterator[None]:
    """The random state is kept; warnings and output of modules and exporters are suppressed."""
    with (
        random_state_kept(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        yield
