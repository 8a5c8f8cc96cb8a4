"""Times of several networks beside each other: in turn, round by round, so that what slows the machine slows all."""

import copy
import statistics
from collections.abc import Mapping

from torch import Tensor, nn

from lookfar._options import positive
from lookfar.cost.measure import Inputs, _device_of, _mode, _one_thread, _seeded, _times, caller


def measure_in_turn(
    networks: Mapping[str, nn.Module],
    example: Tensor,
    *,
    backward: bool = False,
    rounds: int = 10,
    calls: int = 5,
    warm_up: bool = True,
    budget: float = 1.0,
) -> dict[str, list[float]]:
    """Milliseconds of a call of each network, one number a round: the median of some calls after one to warm up.

    Every second round goes the other way round, so that none always follows the same one. Ratios within a round repeat
    better than times do: on a busy machine one network has read 1.96 and 3.41 ms, its ratio to another within 10 %.

    Args:
        networks: All on one device, by what they are called; left as they were.
        example: Their input.
        backward: Time both passes, in training mode, instead of the forward pass in evaluation.
        rounds: How often each has its turn.
        calls: Of a network in its turn; fewer once they took ``budget`` seconds.
        warm_up: Before every turn; else before the first alone, where calls are long.
        budget: Seconds.

    >>> import torch
    >>> found = measure_in_turn({"a": nn.Identity(), "b": nn.ReLU()}, torch.zeros(1, 3, 8, 8), rounds=2, calls=1)
    >>> {name: len(times) for name, times in found.items()}
    {'a': 2, 'b': 2}
    """
    positive("rounds", rounds)
    positive("calls", calls)
    found: dict[str, list[float]] = {name: [] for name in networks}
    if backward:  # running statistics and gradients of the caller's stay
        networks = {name: copy.deepcopy(network) for name, network in networks.items()}
    for number in range(rounds):
        for name in reversed(found) if number % 2 else found:
            network = networks[name]
            device = _device_of(network)
            call = caller(network, Inputs((example.to(device),)), backward=backward)
            with _mode(network, training=backward), _one_thread(device), _seeded():
                if number == 0 or warm_up:
                    call()
                times = _times(call, device, calls, budget=budget)
            found[name].append(1000 * statistics.median(times))
    return found
