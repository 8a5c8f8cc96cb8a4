"""Run a network to see what it does, and leave no trace: flags, buffers and random state stay as they were."""

import contextlib
import random
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lookfar._modes import modes_restored
from lookfar._tables import said

PATIENCE = 2.0  # seconds before a word on the terminal
Inputs = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a forward pass


def pretrained_cfg(network: nn.Module) -> dict[str, Any]:
    cfg = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    return cfg if isinstance(cfg, dict) and cfg.get("input_size") else {}


def example_inputs(network: nn.Module, example: Any) -> Inputs:
    if isinstance(example, dict):
        return (), example
    if example is not None:
        return example if isinstance(example, tuple) else (example,), {}
    cfg = pretrained_cfg(network)
    if not cfg:
        raise ValueError(
            f"{type(network).__name__} does not say what it takes (timm's pretrained_cfg does): give example=, an "
            "input such as torch.randn(2, 3, 224, 224)"
        )
    channels, *size = cfg["input_size"]
    # the cfg keeps the size of the published weights for a transformer that was built for another, by img_size=
    size = getattr(getattr(network, "patch_embed", None), "img_size", None) or size
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and first.in_channels % channels:  # the cfg keeps 3 for a network of other bands
        channels = first.in_channels
    like = next(network.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, channels, *size, generator=generator).to(like),), {}


@contextlib.contextmanager
def asks_for_example(network: nn.Module, example: Any, inputs: Inputs) -> Iterator[None]:
    """Inside, a network that cannot take the images that were made for it raises a ValueError that asks for others."""
    try:
        yield
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:  # timm asserts sizes
        if example is not None:
            raise
        raise ValueError(
            f"{type(network).__name__} cannot take images {tuple(inputs[0][0].shape)}, as its pretrained_cfg has them: "
            f"give example=, an input that it takes ({said(error)})"
        ) from error


@contextlib.contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Training flags, buffers and random states (torch's, numpy's, Python's) are restored afterwards."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with modes_restored(network), torch.random.fork_rng(devices=cuda), _other_random_states():
            torch.default_generator.manual_seed(0)  # torch.manual_seed would also seed a CUDA that is not yet in use
            if cuda:
                torch.cuda.manual_seed_all(0)
            yield
    finally:
        for module, name, buffer, value in buffers:
            with torch.inference_mode() if buffer.is_inference() else torch.no_grad():
                module._buffers[name] = buffer.copy_(value)


@contextlib.contextmanager
def _other_random_states() -> Iterator[None]:
    numpy = sys.modules.get("numpy")  # a host that draws from it has loaded it
    kept, drawn = random.getstate(), numpy.random.get_state() if numpy else None
    random.seed(0)
    if numpy:
        numpy.random.seed(0)
    try:
        yield
    finally:
        random.setstate(kept)
        if numpy:
            numpy.random.set_state(drawn)


def run(network: nn.Module, inputs: Inputs, *, train: bool) -> list[Tensor]:
    """All tensors that a forward pass returns, always from the same random state."""
    args, kwargs = inputs
    with untouched(network), torch.no_grad(), _said(network):
        network.train(train)
        return [y.clone() for y in tree_leaves(network(*args, **kwargs)) if isinstance(y, Tensor)]


@contextlib.contextmanager
def _said(network: nn.Module) -> Iterator[None]:
    """On a terminal, say after two seconds what is taking so long."""
    text = f"lookfar: running {type(network).__name__} on the example …"
    timer = threading.Timer(PATIENCE, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    if sys.stderr is not None and sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def only_tensor(value: Any) -> Tensor | None:
    """The feature in a module's output: itself, or the one tensor in a tuple, as some transformers' layers give it."""
    if isinstance(value, tuple | list):
        tensors = [y for y in value if isinstance(y, Tensor)]
        return tensors[0] if len(tensors) == 1 and type(value) in (tuple, list) else None
    return value if isinstance(value, Tensor) else None


@dataclass
class Call:
    """One call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any  # a copy, since hosts work in place
    before: int  # how many of the modules whose shapes are noted had run


Shapes = list[tuple[str, tuple[int, ...]]]


@contextlib.contextmanager
def recorded(
    network: nn.Module, names: Iterable[str], shapes_of: Iterable[str] = ()
) -> Iterator[tuple[dict[str, list[Call]], Shapes]]:
    """Calls of the named modules; names and output shapes of others, in the order of their calls."""
    calls: dict[str, list[Call]] = {name: [] for name in names}
    shapes: Shapes = []

    def record(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        copied = tree_map(lambda y: y.clone() if isinstance(y, Tensor) else y, output)
        calls[name].append(Call(args, kwargs, copied, len(shapes)))

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            shapes.append((name, tuple(output.shape)))

    module = network.get_submodule
    with contextlib.ExitStack() as stack:
        for name in shapes_of:
            stack.callback(module(name).register_forward_hook(partial(note, name)).remove)
        for name in calls:
            hook = partial(record, name)
            stack.callback(module(name).register_forward_hook(hook, with_kwargs=True).remove)
        yield calls, shapes


@dataclass
class Seen:
    """What a block did in a forward pass.

    Attributes:
        entered: How often it was called.
        calls: How often it returned.
        off_by: The largest difference of its output from its input; None where they are equal bit for bit.
        drew: It drew random numbers.
        restrided: Its output is in another memory format than its input.
        sizes: Of its inputs.
    """

    entered: int = 0
    calls: int = 0
    off_by: float | None = None
    drew: bool = False
    restrided: bool = False
    sizes: list[tuple[int, ...]] = field(default_factory=list)


@contextlib.contextmanager
def watched(blocks: Iterable[nn.Module]) -> Iterator[list[Seen]]:
    """What each of the blocks does while the ``with`` lasts."""
    seen: list[Seen] = []
    before: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def enter(one: Seen, module: nn.Module, args: Any) -> None:
        one.entered += 1
        one.sizes.append(tuple(args[0].shape))
        before[id(one)] = args[0].clone(memory_format=torch.preserve_format), _random_states(args[0])

    def leave(one: Seen, module: nn.Module, args: Any, output: Tensor) -> None:
        x, states = before.pop(id(one))
        one.calls += 1
        one.drew = one.drew or not all(map(torch.equal, states, _random_states(x)))
        one.restrided = one.restrided or x.stride() != output.stride()
        if x.shape != output.shape:  # a layer in the place of another
            one.off_by = float("inf")
        elif not bit_equal(x, output):
            off_by = (output.double() - x.double()).abs().nan_to_num(float("inf")).max()
            one.off_by = max(one.off_by or 0.0, float(off_by))

    with contextlib.ExitStack() as stack:
        for block in blocks:
            seen.append(Seen())
            stack.callback(block.register_forward_pre_hook(partial(enter, seen[-1])).remove)
            stack.callback(block.register_forward_hook(partial(leave, seen[-1])).remove)
        yield seen


def _random_states(x: Tensor) -> list[Tensor]:
    return [torch.random.get_rng_state(), *([torch.cuda.get_rng_state(x.device)] if x.is_cuda else [])]


def bit_equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.is_meta or bool(((a == b) | ((a != a) & (b != b))).all()))
