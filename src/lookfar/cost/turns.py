"""Times of several networks beside each other: in turn, round by round, so that what slows the machine slows all."""

import statistics
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lookfar._options import positive
from lookfar.cost.measure import _device_of, _mode, _one_thread, _seeded, _times


def measure_in_turn(
    networks: Mapping[str, nn.Module], example: Tensor, *, rounds: int = 10, calls: int = 5, budget: float = 1.0
) -> dict[str, list[float]]:
    """Milliseconds of a call of each network, one number a round: the median of some calls after one to warm up.

    Every second round goes the other way round, so that none always follows the same one. Ratios within a round repeat
    better than times do: on a busy machine one network has read 1.96 and 3.41 ms, its ratio to another within 10 %.

    Args:
        networks: All on one device, by what they are called; left as they were.
        example: Their input.
        rounds: How often each has its turn.
        calls: Of a network in its turn; fewer once they took ``budget`` seconds.
        budget: Seconds.

    >>> found = measure_in_turn({"a": nn.Identity(), "b": nn.ReLU()}, torch.zeros(1, 3, 8, 8), rounds=2, calls=1)
    >>> {name: len(times) for name, times in found.items()}
    {'a': 2, 'b': 2}
    """
    positive("rounds", rounds)
    positive("calls", calls)
    found: dict[str, list[float]] = {name: [] for name in networks}
    for number in range(rounds):
        for name in reversed(found) if number % 2 else found:
            network = networks[name]
            device = _device_of(network)
            x = example.to(device)
            with _mode(network, training=False), _one_thread(device), _seeded(), torch.no_grad():
                network(x)
                times = _times(lambda: network(x), device, calls, budget=budget)  # noqa: B023  called at once
            found[name].append(1000 * statistics.median(times))
    return found
