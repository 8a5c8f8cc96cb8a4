"""Orders of growth that papers give for their blocks, by counted operations and by measured time."""

import math

from lookfar.claims._claim import Claim, Outcome

CLAIM = Claim(
    says="Work grows with N positions as N^2 (non-local), N sqrt(N) (CCNet, ISA), N (DGMN, A2).",
    source="Tables of complexity in CCNet (1811.11721), ISA (1907.12273), DGMN (1908.06955) and A2-Nets (1810.11579)",
    refuted_by="counted operations whose exponent between 64 x 64 and 128 x 128 is off by more than 0.1",
)
ORDERS = {
    "nonlocal": 2.0,
    "criss_cross": 1.5,
    "interlaced": 1.5,
    "dynamic_message_passing": 1.0,
    "double_attention": 1.0,
}
CHANNELS = 8  # few, so that projections, which grow as N C^2, do not hide the order


def run() -> Outcome:
    """Exponents of FLOPs, from closed forms of the library's counter, and of processor time, between two sizes."""
    from lookfar.cost import measure_cost

    found, off = [], 0.0
    for name, order in ORDERS.items():
        small, large = (measure_cost(name, CHANNELS, (side, side), repeats=1) for side in (64, 128))
        work, time = (small.flops, large.flops), (small.latency_ms, large.latency_ms)
        by_work, by_time = (math.log(pair[1] / pair[0]) / math.log(4) for pair in (work, time))
        off = max(off, abs(by_work - order))
        found.append(f"{name} {by_work:.2f} counted and {by_time:.1f} in time, want {order:g}")
    return Outcome("confirmed" if off <= 0.1 else "refuted", f"exponents of N: {'; '.join(found)}.")
