"""What surrounds a run: devices through Lightning Fabric, threads and random state, signals."""

import contextlib
import logging
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from lookfar.training.settings import Settings

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def is_main_process() -> bool:
    """Whether this process is the one that writes and reports; True where there is only one.

    >>> is_main_process()
    True
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return all(int(os.environ.get(name) or 0) == 0 for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def launch(settings: Settings) -> "Fabric":
    """Fabric on the requested devices, with its processes started."""
    with quiet():
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments import TorchElasticEnvironment

        devices, nodes = settings.devices, 1
        if TorchElasticEnvironment.detect():  # torchrun has started the processes: theirs is the number
            devices = int(os.environ["LOCAL_WORLD_SIZE"])
            nodes = int(os.environ["WORLD_SIZE"]) // devices
        if settings.precision == "16-mixed" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
            raise ValueError("precision 16-mixed needs a GPU, and there is none here; want bf16-mixed or 32-true")
        try:
            fabric = Fabric(
                accelerator=settings.accelerator,
                devices=devices,
                num_nodes=nodes,
                strategy="ddp" if devices != "auto" and int(devices) * nodes > 1 else "auto",
                precision=settings.precision,  # type: ignore[arg-type]
            )
        except (RuntimeError, ValueError) as error:  # Fabric's own words: no such accelerator, too few devices
            raise ValueError(f"accelerator={settings.accelerator!r}, devices={devices!r}: {error}") from error
        if os.environ.get("LT_CLI_USED", "0") == "0":  # `fabric run` has launched it, and Fabric refuses to do so twice
            fabric.launch()
    return fabric


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Fabric's hints to its own users (versions, tensor cores, srun, process groups) off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger = logging.getLogger("lightning_fabric")
        level = logger.level
        import lightning_fabric  # noqa: F401  (sets its level)

        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(max(level, logging.WARNING))


@contextlib.contextmanager
def reproducible(settings: Settings, device: torch.device) -> Iterator[None]:
    """Threads, deterministic kernels and random state of a run; the caller's are restored afterwards."""
    on_cpu = device.type == "cpu"
    with contextlib.ExitStack() as back:
        back.callback(torch.set_num_threads, torch.get_num_threads())
        back.callback(random.setstate, random.getstate())
        back.callback(np.random.set_state, np.random.get_state())
        back.enter_context(torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []))
        if settings.threads is not None or on_cpu:
            torch.set_num_threads(settings.threads or 1)
        if on_cpu:  # on a GPU deterministic scatters are several times slower, and some operations have none
            back.callback(
                torch.use_deterministic_algorithms,
                torch.are_deterministic_algorithms_enabled(),
                warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            )
            torch.use_deterministic_algorithms(True, warn_only=True)
            back.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
            # with that, torch also fills new memory with NaN: it takes time, and nothing here reads unwritten memory
            _set_until(back, torch.utils.deterministic, "fill_uninitialized_memory", False)
        _set_until(back, torch.backends.cudnn, "deterministic", True)
        yield


def _set_until(back: contextlib.ExitStack, owner: object, name: str, value: object) -> None:
    back.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


@contextlib.contextmanager
def stop_on_signal(alone: bool) -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C and SIGTERM wait for the end of a step; a second one ends at once.

    With several processes they would stop at different steps: there the signals keep their meaning.
    """
    came: list[int] = []
    if not alone or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
