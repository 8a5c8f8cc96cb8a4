"""Facts about cost: how time and memory grow with the number of positions."""

import torch

from lookfar._tables import by_size
from lookfar.check.outcome import Outcome, fact, not_asked
from lookfar.check.subject import Subject
from lookfar.cost import growth

LINEAR = {"time": 1.2, "memory": 1.1}  # exponents that pass for linear: clocks are less exact than allocators
SIZES = {
    1: [(1024,), (2304,), (4096,), (9216,)],
    2: [(32, 32), (48, 48), (64, 64), (96, 96)],
    3: [(4, 16, 16), (4, 24, 24), (4, 32, 32), (4, 48, 48)],
}
SECONDS = 8.0  # seconds that one call may take


def grows(subject: Subject) -> Outcome:
    """Time and peak memory of a forward pass as powers of the number of positions N, measured."""
    module = subject.make(torch.float32)
    measured = growth(module, subject.channels, SIZES[len(subject.size)], limit=SECONDS)
    exponents = {"time": measured.time_exponent, "memory": measured.memory_exponent}
    if None in exponents.values():
        return not_asked("too slow to be measured at two sizes")
    found = " and ".join(f"{what} as N^{value:.2f}" for what, value in exponents.items())
    first, last = measured.points[0].size, measured.points[-1].size
    steep = any(value is not None and value > LINEAR[what] for what, value in exponents.items())
    return fact(f"{found}, from {by_size(first)} to {by_size(last)}", fails_strict=steep)
