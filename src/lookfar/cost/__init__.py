"""What a block or a network costs: parameters, FLOPs, time, peak memory, and how the last two grow with resolution.

Everything is measured on this machine, by running it; nothing is extrapolated. ``docs/cost.md`` says how to read it.

- FLOPs: of the matrix products, convolutions and attention kernels that run, see :func:`count_flops`.
- Time: the median of repeated calls after a warm-up, on one thread of a CPU or between two events of a GPU.
- Memory: the highest sum of what torch's allocator hands out and gets back during one call, scratch space of kernels
  included, beyond the parameters and the input, which exist before. 1 MB is 10^6 bytes.
"""

from lookfar.cost.flops import count_flops
from lookfar.cost.growing import GROWTH_CHANNELS, GROWTH_SIZES, Growth, growth
from lookfar.cost.measure import Cost, measure_cost, measure_network
from lookfar.cost.memory import keep_pages, peak_memory
from lookfar.cost.sizes import parse_size, size_for
from lookfar.cost.turns import measure_in_turn

__all__ = [
    "GROWTH_CHANNELS",
    "GROWTH_SIZES",
    "Cost",
    "Growth",
    "count_flops",
    "growth",
    "keep_pages",
    "measure_cost",
    "measure_in_turn",
    "measure_network",
    "parse_size",
    "peak_memory",
    "size_for",
]
