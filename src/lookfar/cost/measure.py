"""Blocks and networks run once more, with a counter, a recorder and a clock beside them."""

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lookfar._modes import modes_restored
from lookfar._options import positive
from lookfar._tables import said
from lookfar.blocks import create_block, parse_block, sample_inputs
from lookfar.blocks._own import find_own, parse_address
from lookfar.cost.flops import count_flops
from lookfar.cost.memory import peak_memory
from lookfar.cost.sizes import size_for

CACHE = 2**26  # bytes, more than a processor's caches hold


@dataclass(frozen=True)
class Cost:
    """What one call costs.

    Attributes:
        name: The block as written, or the class of the module.
        channels: Channels of the input.
        size: Spatial size of the input.
        batch: Images in the input.
        backward: Forward and backward pass, in training; else the forward pass alone, in evaluation without gradients.
        parameters: Count of learnable numbers.
        flops: A multiply-add is 2.
        latency_ms: Median time of a call, milliseconds.
        memory_mb: Peak memory beyond parameters and input, 10^6 bytes.
        repeats: Calls that the median was taken over.
        device: ``cpu (1 thread)`` or the name of the GPU.
    """

    name: str
    channels: int
    size: tuple[int, ...]
    batch: int
    backward: bool
    parameters: int
    flops: int
    latency_ms: float
    memory_mb: float
    repeats: int
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, as JSON takes them."""
        return {**asdict(self), "size": list(self.size)}

    def _repr_html_(self) -> str:
        from lookfar.cost.tables import cost_table

        return cost_table([self]).html


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]

    @property
    def shape(self) -> tuple[int, int, tuple[int, ...]]:
        """Batch, channels and size of the first tensor; images in a list have no axis for their batch."""
        first = next(iter((*self.args, *self.kwargs.values())), None)
        if isinstance(first, list) and first and isinstance(first[0], Tensor):
            batch, shape = len(first), first[0].shape
        elif self.tensors:
            batch, *shape = self.tensors[0].shape or (1,)
        else:
            raise ValueError(f"the example holds no tensor: {first!r}")
        channels, *size = shape or (1,)
        return batch, channels, tuple(size)

    def map(self, f: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same arguments with ``f`` of every tensor."""
        return Inputs(*tree_map(lambda t: f(t) if isinstance(t, Tensor) else t, (self.args, self.kwargs)))


def measure_cost(
    block: str | nn.Module,
    channels: int = 256,
    size: Sequence[int] | None = None,
    *,
    batch: int | None = None,
    backward: bool = False,
    device: str | torch.device | None = None,
    repeats: int = 10,
) -> Cost:
    """Measure a block on a random feature map.

    Args:
        block: A name, with options if wanted (``"nonlocal(mode=gaussian)"``), a class in a file of yours
            (``"my.py:MyBlock"``), or a module.
        channels: Channels of the feature map.
        size: Its spatial size, as many numbers as the block has axes: 64 x 64 by default, as many positions in one
            axis with ``dims=1`` (4096) and in three with ``dims=3`` (16 x 16 x 16).
        batch: Maps in a call; by default one, and two with ``backward``, since a BatchNorm behind a pooling to one
            position does not train on one.
        backward: Measure forward and backward pass in training mode instead of the forward pass in evaluation.
        device: Where to measure; None is the module's own device, for a name the CPU.
        repeats: Calls to take the median over; fewer are made once they took five seconds together, at least one.

    Raises:
        ValueError: Unknown block, a size that is not positive or has other axes than the block, more than the memory
            holds, a device that is not there.

    >>> cost = measure_cost("squeeze_excitation", channels=32, size=(8, 8), repeats=1)
    >>> cost.parameters, cost.flops
    (162, 256)
    """
    positive("repeats", repeats)
    positive("channels", channels)
    batch = (2 if backward else 1) if batch is None else batch
    positive("batch", batch)
    size = size_for(block, size)
    with _explained(block, channels, size):
        if isinstance(block, str):
            name = block.strip()
            module = _create(block, channels, _checked_device(device))
        else:
            name, module = type(block).__name__, block
            device = _device_of(block) if device is None else _checked_device(device)
            module = module if device == _device_of(block) else copy.deepcopy(block).to(device)
        with _seeded():
            inputs = Inputs(sample_inputs(module, channels, size, batch=batch)).map(lambda t: t.to(_device_of(module)))
        return _measure(
            name,
            module,
            inputs,
            batch=inputs.shape[0],
            channels=channels,
            size=size,
            backward=backward,
            repeats=repeats,
        )


def measure_network(network: nn.Module, example: Any, *, backward: bool = False, repeats: int = 10) -> Cost:
    """Measure a whole network on ``example``, on the device where the network is.

    Args:
        network: Any module. It is left as it was: flags, buffers, gradients.
        example: Its input: a tensor, a tuple of arguments, or a dict of keyword arguments, as :func:`lookfar.insert`
            takes it; a list is one argument, such as the images that detectors of torchvision take. The shape of the
            first tensor is reported.
        backward: Measure forward and backward pass in training mode instead of the forward pass in evaluation.
        repeats: As in :func:`measure_cost`.

    Raises:
        ValueError: An example without a tensor; with ``backward`` an output that no gradient comes from.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    >>> cost = measure_network(network, torch.randn(1, 3, 16, 16), repeats=1)
    >>> cost.size, cost.parameters, cost.flops
    ((16, 16), 224, 110592)
    """
    if isinstance(example, Mapping):
        inputs = Inputs((), dict(example))
    else:
        inputs = Inputs(example if isinstance(example, tuple) else (example,))
    device = _device_of(network)
    inputs = inputs.map(lambda t: t.detach().to(device))
    batch, channels, size = inputs.shape
    return _measure(
        type(network).__name__,
        network,
        inputs,
        batch=batch,
        channels=channels,
        size=size,
        backward=backward,
        repeats=repeats,
    )


def _create(block: str, channels: int, device: torch.device) -> nn.Module:
    with _seeded():
        if address := parse_address(block):
            return find_own(address).build(channels).to(device)
        canonical, options = parse_block(block)
        return create_block(canonical, channels, **options, device=device)


@contextlib.contextmanager
def _explained(block: str | nn.Module, channels: int, size: tuple[int, ...]) -> Iterator[None]:
    """Turn what torch says of a map that a block of ours cannot take, or no memory holds, into the user's words."""
    try:
        yield
    except (Exception, SystemExit) as error:
        own = isinstance(block, str) and parse_address(block) is not None  # it may raise whatever it likes
        known = isinstance(error, (RuntimeError, MemoryError, IndexError, ArithmeticError))
        if not isinstance(block, str) or isinstance(error, (ValueError, TypeError, OSError)) or not (own or known):
            raise
        words = " ".join(str(error).split())
        reason = said(error) if isinstance(error, KeyError) or not words else words  # of a key there is the key alone
        at = "x".join(map(str, size))
        raise ValueError(f"{block} cannot be measured at size {at} with {channels} channels: {reason}") from error


def _measure(
    name: str,
    module: nn.Module,
    inputs: Inputs,
    *,
    batch: int,
    channels: int,
    size: tuple[int, ...],
    backward: bool,
    repeats: int,
) -> Cost:
    positive("repeats", repeats)
    device = _device_of(module)
    if backward:
        module = copy.deepcopy(module).requires_grad_()  # running statistics and gradients of the caller's stay
    call = caller(module, inputs, backward=backward)
    with _mode(module, training=backward), _one_thread(device), _seeded():
        flops = count_flops(call)  # the first call is the warm-up too
        memory = peak_memory(call, device)
        times = _times(call, device, repeats)
    return Cost(
        name=name,
        channels=channels,
        size=size,
        batch=batch,
        backward=backward,
        parameters=sum(p.numel() for p in module.parameters()),
        flops=flops,
        latency_ms=1000 * statistics.median(times),
        memory_mb=memory / 1e6,
        repeats=len(times),
        device="cpu (1 thread)" if device.type == "cpu" else torch.cuda.get_device_name(device),
    )


def caller(module: nn.Module, inputs: Inputs, *, backward: bool) -> Callable[[], None]:
    """What is measured: a forward pass without gradients, or one with its backward pass, which leaves none behind."""
    if backward:
        inputs = inputs.map(lambda t: t.detach().clone().requires_grad_(t.is_floating_point()))

    def call() -> None:
        if not backward:
            with torch.no_grad():
                module(*inputs.args, **inputs.kwargs)
            return
        _sum(module(*inputs.args, **inputs.kwargs)).backward()
        for t in (*module.parameters(), *inputs.tensors):
            t.grad = None

    return call


def _times(call: Callable[[], object], device: torch.device, repeats: int, *, budget: float = 5.0) -> list[float]:
    """Seconds of each of ``repeats`` calls, fewer once they took ``budget`` seconds together, at least one."""
    times: list[float] = []
    others = torch.empty(0 if device.type == "cuda" else CACHE // 4)
    while len(times) < repeats and (not times or sum(times) < budget):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1000)
        else:
            others.zero_()  # in a network other layers have used the caches since the last call
            begin = time.process_time()  # on one thread: what other programs do meanwhile does not count
            call()
            times.append(time.process_time() - begin)
    return times


def _sum(output: Any) -> Tensor:
    tensors = [t for t in _tensors(output) if t.requires_grad]
    if not tensors:
        raise ValueError("no tensor of the output asks for a gradient: there is no backward pass to measure")
    return torch.stack([t.float().sum() for t in tensors]).sum()


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    return [t for part in output for t in _tensors(part)] if isinstance(output, list | tuple) else []


@contextlib.contextmanager
def _mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    with modes_restored(module):
        module.train(training)
        yield


@contextlib.contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The same random numbers for every measurement, and none taken from the caller's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _device_of(module: nn.Module) -> torch.device:
    first = next((t for group in (module.parameters(), module.buffers()) for t in group), None)
    return torch.device("cpu") if first is None else first.device


def _checked_device(device: str | torch.device | None) -> torch.device:
    try:
        checked = torch.device("cpu" if device is None else device)
    except RuntimeError:
        raise ValueError(f"cost is measured on 'cpu' or 'cuda', got {str(device)!r}") from None
    if checked.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("the device 'cuda' was asked for, but torch sees no GPU here; 'cpu' works everywhere")
    if checked.type not in ("cpu", "cuda"):
        raise ValueError(f"cost is measured on 'cpu' or 'cuda', got {str(device)!r}")
    return checked
