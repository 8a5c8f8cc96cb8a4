"""Trials on a Ray cluster. The study's folder is the truth: Ray places trials, passes on what they say, and tells when
a node is gone.

A trial is an actor, which starts the same process on its node as the pool does on this machine. Where the study dies,
Ray ends its actors, and their trials end with them, since the pipes to them close.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from lookfar._options import Range, check
from lookfar.study.plan import Plan
from lookfar.study.processes import LOST, start, threads_of

PACKAGES = ("lookfar", "torch", "torchvision", "timm", "lightning-fabric", "numpy")  # decide a trial's numbers
REACHED = 10.0  # seconds that a cluster has to answer
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a notice of Ray about its own future
    "RAY_DEDUP_LOGS": "0",
}


class Cluster:
    """The nodes of a Ray cluster.

    Args:
        plan: Resolved.
        workers: Trials side by side at most; None for as many as fit.
        address: As Ray takes it; empty for ``$RAY_ADDRESS``, or a new cluster of this machine alone.

    Raises:
        ValueError: Ray is not installed, no cluster is there, or no node has what a trial takes.
    """

    def __init__(self, plan: Plan, workers: int | None, address: str) -> None:
        check("workers", workers, Annotated[int | None, Range(1, 1024)])
        self.plan, self.workers = plan, workers
        self.takes = {"CPU": plan.threads * plan.devices if plan.accelerator == "cpu" else plan.threads}
        if plan.accelerator == "cuda":
            self.takes["GPU"] = plan.devices
        self.ray = connect(address)
        self._counted, self._number = 0.0, 1
        self._actor = self.ray.remote(Runner).options(
            num_cpus=self.takes["CPU"], num_gpus=self.takes.get("GPU", 0), max_restarts=0, max_concurrency=2
        )
        if not self._fits() and any(node.get("CPU") for node in self._nodes()):
            self.close()
            wanted = " and ".join(f"{number} {name}" for name, number in self.takes.items())
            raise ValueError(f"a trial takes {wanted}, and no node of the Ray cluster has as many")

    def number(self) -> int:
        if time.monotonic() - self._counted > 1:
            self._counted, self._number = time.monotonic(), max(self._fits(), 1)  # a cluster may grow on demand
        return min(self._number, self.workers or self._number)

    def start(self, slot: int, folder: Path) -> "Remote":
        wanted = {name: metadata.version(name) for name in PACKAGES}
        actor = self._actor.remote()
        said = actor.run.options(num_returns="streaming").remote(
            str(folder.resolve()), threads_of(self.plan), str(Path.cwd()), wanted
        )
        return Remote(self.ray, actor, said)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self.ray.shutdown()

    def _nodes(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _fits(self) -> int:
        """How many trials all nodes together have room for."""
        return sum(
            min(int(node.get(name, 0) // number) for name, number in self.takes.items()) for node in self._nodes()
        )


class Runner:
    """Runs a trial on a node, as an actor."""

    process: "subprocess.Popen[str] | None" = None

    def run(
        self, folder: str, environment: Mapping[str, str], cwd: str, wanted: Mapping[str, str]
    ) -> Iterator[str | int | tuple[str]]:
        """The lines that a trial writes, then its exit status; why it cannot run here instead, in a tuple."""
        if reason := unfit(folder, cwd, wanted):
            yield (reason,)
            return
        yield "\n"  # this much has begun
        self.process = start(Path(folder), environment, cwd)
        assert self.process.stdout is not None
        for line in self.process.stdout:  # noqa: UP028  (Ray sends into its generators, which a file does not take)
            yield line
        yield self.process.wait()

    def terminate(self) -> None:
        """Ask it to stop."""
        if self.process is not None:
            self.process.terminate()


def unfit(folder: str, cwd: str, wanted: Mapping[str, str]) -> str:
    """Why a trial cannot run on this machine; empty where it can."""
    import platform

    for path in (folder, cwd):
        if not Path(path).is_dir():
            return f"{platform.node()} has no {path}: a study on Ray needs a folder that all nodes see under one path"
    for name, version in wanted.items():
        here = None
        with contextlib.suppress(metadata.PackageNotFoundError):
            here = metadata.version(name)
        if here != version:
            return f"{platform.node()} has {name} {here}, the study was started with {version}: want the same"
    return ""


class Remote:
    """A trial on a node, as a process of this machine would look."""

    def __init__(self, ray: Any, actor: Any, said: Any) -> None:
        self._ray, self._actor, self._said = ray, actor, said
        self._code, self._over, self._began = LOST, threading.Event(), False
        self.why = ""
        self.stdout = self._lines()

    def _lines(self) -> Iterator[str]:
        try:
            for one in self._said:
                said, self._began = self._ray.get(one), True
                if isinstance(said, str):
                    yield said
                elif isinstance(said, int):
                    self._code = said
                else:
                    self._code, self.why = 1, said[0]
        except self._ray.exceptions.RayTaskError as error:
            self._code, self.why = 1, " ".join(str(error.cause).split())
        except self._ray.exceptions.RayError:  # the node, or Ray's process on it, is gone
            pass
        finally:
            self.kill()
            self._over.set()

    def wait(self, timeout: float | None = None) -> int:
        if not self._over.wait(timeout):
            raise subprocess.TimeoutExpired("ray", timeout or 0)
        return self._code

    def terminate(self) -> None:
        if self._began:
            self._actor.terminate.remote()
        else:  # it may wait for room on a node, and then nobody is there to hear that
            self.kill()

    def kill(self) -> None:
        with contextlib.suppress(Exception):  # it may be gone, and Ray with it
            self._ray.kill(self._actor)


def connect(address: str) -> Any:
    """Ray, connected: quiet, and where it is started here, without dashboard and bound to this machine alone.

    Raises:
        ValueError: It is not installed, or no cluster is at the address.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options["include_dashboard"] = False
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on these it binds to the loopback address
    try:
        import ray
    except ImportError as error:
        raise ValueError("Ray is not installed: pip install 'lookfar[distributed]'") from error
    handled = signal.getsignal(signal.SIGTERM)
    try:
        if found := re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address):
            socket.create_connection((found[1], int(found[2])), REACHED).close()  # Ray would try for minutes
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"no Ray cluster at {address}: {' '.join(str(error).split())}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handled)  # Ray ends the process at once
    return ray
