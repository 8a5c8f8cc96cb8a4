"""Peak memory of one call, exactly as torch's allocator hands it out."""

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any

import torch


def peak_memory(call: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Bytes at the peak of ``call()`` beyond what was allocated before, as recorded by torch's allocator.

    On a CPU every allocation and release is recorded with its size while the call runs, the scratch space of kernels
    such as fused attention too; the peak of the running sum is exact. What libraries allocate past torch (oneDNN's
    packed weights) is not seen. On a GPU it is ``torch.cuda.max_memory_allocated``.

    >>> x = torch.zeros(1000)
    >>> peak_memory(x.neg)
    4000
    """
    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.synchronize(where)
        before = torch.cuda.memory_allocated(where)
        torch.cuda.reset_peak_memory_stats(where)
        call()
        torch.cuda.synchronize(where)
        return torch.cuda.max_memory_allocated(where) - before
    total = peak = 0
    for change in recorded(call):
        total += change
        peak = max(peak, total)
    return peak


def recorded(call: Callable[[], object]) -> list[int]:
    """Sizes of allocations (positive) and releases (negative) on the CPU, in order."""
    try:
        # the public profiler writes lines of its own to stderr on every start; this one is silent and sees the same
        from torch._C._autograd import _enable_record_function
        from torch.autograd.profiler_legacy import _disable_profiler_legacy, _enable_profiler_legacy, profile
    except ImportError:
        return recorded_by_kineto(call)
    _enable_profiler_legacy(profile(profile_memory=True).config())
    _enable_record_function(False)  # operators are events too, gigabytes of them where blocks of queries are many
    try:
        call()
    finally:
        _enable_record_function(True)
        threads = _disable_profiler_legacy()
    return [e.cpu_memory_usage() for thread in threads for e in thread if e.kind() == "memory_alloc"]


def recorded_by_kineto(call: Callable[[], object]) -> list[int]:
    """The same through the public profiler, for a torch without the old one."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorder:
        call()
    results: Any = recorder.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    events = [e for e in results.events() if e.name() == "[memory]"]
    return [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]


def keep_pages() -> None:
    """Have this process keep the memory that it frees, where its C library can (glibc).

    Large tensors are otherwise given back to the system and faulted in anew at every call, which is timed with the
    block and makes linear ones look steeper. It cannot be undone: for processes that measure and end.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        library.mallopt(-4, 0)  # M_MMAP_MAX
