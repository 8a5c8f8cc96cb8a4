"""Run a network to see what it does, and leave no trace: flags, buffers and random state stay as they were."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

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
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and first.in_channels % channels:  # the cfg keeps 3 for a network of other bands
        channels = first.in_channels
    like = next(network.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, channels, *size, generator=generator).to(like),), {}


@contextlib.contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Training flags, buffers and the random state are afterwards as they were."""
    flags = [(module, module.training) for module in network.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(0)  # torch.manual_seed would also seed a CUDA that is not yet in use
            if cuda:
                torch.cuda.manual_seed_all(0)
            yield
    finally:
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)


def run(network: nn.Module, inputs: Inputs, *, train: bool) -> dict[str, Tensor]:
    """Outputs and, after a pass in training, buffers; under one random state."""
    args, kwargs = inputs
    with untouched(network), torch.no_grad():
        network.train(train)
        leaves = tree_leaves(network(*args, **kwargs))
        result = {f"output {n}": y.clone() for n, y in enumerate(leaves) if isinstance(y, Tensor)}
        if train:
            result |= {f"buffer {name}": b.clone() for name, b in network.named_buffers()}
    return result


@contextlib.contextmanager
def recorded(network: nn.Module, names: Sequence[str], *, inputs: bool = False) -> Iterator[dict[str, list[Any]]]:
    """What the named modules give, or take, a list entry a call; copies, since hosts work in place."""
    seen: dict[str, list[Any]] = {name: [] for name in names}

    def hook(name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            value = args[0] if inputs else output
            seen[name].append(value.clone() if isinstance(value, Tensor) else value)

        return record

    handles = [network.get_submodule(name).register_forward_hook(hook(name)) for name in seen]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def bit_equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
