"""One training loop, on Lightning Fabric: CPU or GPU, one device or several, resumed exactly where it was killed.

Everything that a step depends on is its weights and ``f(seed, step)``: the batch, the random state and the learning
rate are functions of seed and step, so a checkpoint needs no state of a loader, a schedule or a generator.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lookfar._arrays import read_arrays
from lookfar.training.checkpoints import (
    Checkpoint,
    Records,
    damaged,
    first_not_finite,
    fits,
    last_record,
    load_checkpoints,
    load_weights,
    newest_state,
    remove_after,
    save_arrays,
    save_checkpoint,
    save_tensors,
    write_atomically,
)
from lookfar.training.environment import launch, quiet, reproducible, stop_on_signal
from lookfar.training.evaluation import channels_last, evaluate
from lookfar.training.modules import WithLoss, running_average, synchronised
from lookfar.training.optimization import create_optimizer, schedule_factor, set_random_state
from lookfar.training.probes import Probe, gradient_square
from lookfar.training.settings import Settings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from lookfar.data import Data
    from lookfar.tasks._base import Judged, Task


Progress = Callable[[int, int, dict[str, Any]], None]


class TrainingError(RuntimeError):
    """Training failed in a way that continuing would not fix; the message names the step."""


def train(
    network: nn.Module,
    data: "Data",
    task: "Task",
    settings: Settings,
    folder: str | Path,
    *,
    seed: int,
    blocks: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a network in place; go on from the newest checkpoint in ``folder``; return at once where all is done.

    With several devices every process calls this with the same arguments, once: Fabric starts them by running the
    program again, unless torchrun or ``fabric run`` has. :func:`is_main_process` says which one reports.

    Args:
        network: Inputs ``(B, C, ...)`` in, what the task judges out; in the end it is in eval mode.
        data: The data set.
        task: What is learned, and how it is judged.
        settings: How to train.
        folder: For ``metrics.jsonl``, ``step-N/``, ``final.safetensors`` and what was judged, ``confusion.npz``.
        seed: Decides the order of the data, its augmentation, and the random state of every step.
        blocks: Names of modules whose contribution, gamma and share of the gradient are recorded.
        progress: Called with (steps done, steps in all, values) at every record and validation.

    Returns:
        The task's scores on the validation set, such as ``miou``; ``step``, ``seconds`` and ``notes``.

    Raises:
        ValueError: Settings that don't fit data, network, machine, or the checkpoint in the folder.
        TrainingError: The loss is not finite, or, at the end, weights or outputs.
        KeyboardInterrupt: Interrupted or terminated; a checkpoint of the last full step has been written.

    >>> from lookfar.data import open_data
    >>> from lookfar.networks import build_network
    >>> from lookfar.tasks import find_task
    >>> network, data, task = build_network("small", classes=5), open_data("scenes:lookup"), find_task("segmentation")
    >>> result = train(network, data, task, Settings(steps=2, batch_size=4), "runs/two", seed=0)
    >>> result["step"], sorted(path.name for path in Path("runs/two").iterdir())
    (2, ['confusion.npz', 'final.safetensors', 'metrics.jsonl', 'step-2'])
    """
    folder = Path(folder)
    if (done := _finished(network, data, task, settings, folder)) is not None:
        return done
    if settings.class_weights is not None:
        task.check_weights(settings.class_weights, data)
    for name in blocks:
        if name not in dict(network.named_modules()):
            raise ValueError(f"no module of the network is called {name!r}, so nothing can be recorded of it")
    fabric = launch(settings)
    task.check_batch(settings.batch_size // fabric.world_size)
    if settings.batch_size % fabric.world_size:
        raise ValueError(f"batch_size {settings.batch_size} cannot be split over {fabric.world_size} devices")
    folder.mkdir(parents=True, exist_ok=True)
    with reproducible(settings, fabric.device), stop_on_signal(fabric.world_size == 1) as stopped:
        run = _Run(fabric, network, data, task, settings, folder, seed, blocks, progress)
        try:
            return run.fit(stopped)
        finally:
            run.close()


class _Run:
    """The state of one training: built, brought to the newest checkpoint, then fitted."""

    def __init__(
        self,
        fabric: "Fabric",
        network: nn.Module,
        data: "Data",
        task: "Task",
        settings: Settings,
        folder: Path,
        seed: int,
        blocks: Sequence[str],
        progress: Progress | None,
    ) -> None:
        self.fabric, self.data, self.task, self.settings = fabric, data, task, settings
        self.folder, self.seed = folder, seed
        self.main = fabric.global_rank == 0
        self.progress = progress if self.main else None
        self.notes: list[str] = []
        if fabric.world_size > 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
            if fabric.device.type == "cuda":
                network = synchronised(network)
            else:
                self.notes.append("batch norm on several CPU processes: batch statistics are those of each process")
        self.network = network
        for parameter in network.parameters():
            if parameter.ndim == 4:  # a quarter faster than planes on a CPU, and what GPUs want
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.probes = {name: Probe(network.get_submodule(name)) for name in blocks}
        weights = None if settings.class_weights is None else torch.tensor(settings.class_weights)
        self.optimizer = create_optimizer(network, settings, blocks)
        with quiet():
            self.model, self.fabric_optimizer = fabric.setup(WithLoss(network, task, weights), self.optimizer)
        self.ema = running_average(network, settings)
        self.step, self.seconds, self.window = 0, 0.0, []
        self._restore()
        self.records = Records(folder / "metrics.jsonl", upto=self.step) if self.main else None
        self.board = _board(folder, self.step) if settings.tensorboard and self.main else None
        fabric.barrier()

    def _restore(self) -> None:
        """Bring the run to its newest checkpoint that is whole, or to its end, where the last weights are there."""
        for checkpoint in load_checkpoints(self.folder, self.notes):
            self._check_settings(checkpoint)
            try:
                self._take_over(checkpoint)
            except Exception as error:  # of another network, or cut short
                self.notes.append(damaged(checkpoint.step, error))
                continue
            break
        steps = self.settings.steps
        final = load_weights(self.folder / "final.safetensors", self.network)
        # weights that nothing led to are not those of this run
        if final is not None and self.step < steps and last_record(self.folder / "metrics.jsonl") == steps:
            for network in (self.network, *([] if self.ema is None else [self.ema.module])):
                network.load_state_dict(final)
            self.step, self.seconds = steps, newest_state(self.folder).get("seconds", 0.0)
        if self.main:
            remove_after(self.folder, self.step)

    def _check_settings(self, checkpoint: Checkpoint) -> None:
        before, now = checkpoint.state.get("settings", {}), _decisive(self.settings, self.seed)
        changed = [f"{key}: {before.get(key)!r} then, {now[key]!r} now" for key in now if before.get(key) != now[key]]
        if changed:
            raise ValueError(f"{self.folder} was begun with other settings: {'; '.join(changed)}")

    def _take_over(self, checkpoint: Checkpoint) -> None:
        """Everything is looked at before anything is changed: an earlier checkpoint, or none, may have to do."""
        averaged = checkpoint.ema if self.ema is not None else None
        window = [torch.tensor(float(loss)) for loss in checkpoint.state["window"]]
        seconds, optimizer = float(checkpoint.state["seconds"]), checkpoint.optimizer["optimizer"]
        whole = fits(checkpoint.weights, self.network) and (
            self.ema is None or (averaged is not None and fits(averaged, self.ema.module))
        )
        if not whole:
            raise ValueError("not the weights of this network")
        self.optimizer.load_state_dict(optimizer)
        self.fabric.strategy.precision.load_state_dict(checkpoint.optimizer["precision"])
        self.network.load_state_dict(checkpoint.weights)
        if self.ema is not None and averaged is not None:
            self.ema.module.load_state_dict(averaged)
        self.step, self.seconds, self.window = checkpoint.step, seconds, window

    def fit(self, stopped: Callable[[], bool]) -> dict[str, Any]:
        settings, steps, judged = self.settings, self.settings.steps, None
        started = time.perf_counter() - self.seconds
        alone = self.fabric.world_size == 1 and self.fabric.device.type == "cpu"
        self.model.train()
        while self.step < steps:
            done = self.step + 1
            log = done % settings.log_every == 0 or done == steps
            validate = done == steps or (settings.eval_every > 0 and done % settings.eval_every == 0)
            shares = self._take_step(watch=log and bool(self.probes))
            self.step = done
            if log or alone:  # on a GPU, reading every loss would make it wait
                self._check_window()
            if log:
                self._log(time.perf_counter() - started, shares)
            if validate:
                judged = self._validate()
            stop = stopped()
            if stop or done == steps or done % settings.checkpoint_every == 0:
                self._check_window()
                self.seconds = time.perf_counter() - started
                self._save()
            if stop and done < steps:
                raise KeyboardInterrupt(f"stopped after step {done} of {steps}; the same call goes on from there")
        return self._finish(judged)

    def _take_step(self, *, watch: bool) -> dict[str, float]:
        """One optimiser step; with ``watch``, each block's share of the gradient."""
        fabric, settings, rank = self.fabric, self.settings, self.fabric.global_rank
        set_random_state(self.seed, self.step, rank)
        inputs, targets = self.data.batch(self.seed, self.step, settings.batch_size, rank=rank, world=fabric.world_size)
        inputs, targets = fabric.to_device((channels_last(inputs), targets))
        factor = schedule_factor(settings.schedule, self.step, settings.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        with contextlib.ExitStack() as hooks:
            for probe in self.probes.values() if watch else ():
                hooks.callback(probe.watch().remove)
            total, count = self.model(inputs, targets)
        # DDP averages gradients over processes: dividing by the mean count makes that the mean over all that counts
        loss = total / self._mean_over_ranks(count.float()).clamp(min=1e-6)
        fabric.backward(loss)
        self.window.append(loss.detach())
        shares = {}
        if watch:
            whole = gradient_square(self.network)
            shares = {name: gradient_square(p.module) / whole if whole else 0.0 for name, p in self.probes.items()}
        if settings.clip:
            fabric.clip_gradients(self.model, self.fabric_optimizer, max_norm=settings.clip, error_if_nonfinite=False)
        self.fabric_optimizer.step()
        self.fabric_optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.network, step=self.step + 1)
        return shares

    def _mean_over_ranks(self, value: Tensor) -> Tensor:
        return cast(Tensor, self.fabric.all_reduce(value, reduce_op="mean"))

    def _check_window(self) -> None:
        if not self.window:
            return
        losses = self._mean_over_ranks(torch.stack([loss.to(self.fabric.device) for loss in self.window]))
        wrong = (~losses.isfinite()).nonzero()
        if len(wrong):
            first = int(wrong[0])
            step = self.step - len(self.window) + first + 1
            factor = schedule_factor(self.settings.schedule, step - 1, self.settings.steps)
            raise TrainingError(
                f"the loss is {float(losses[first])} at step {step} (learning rate {self.settings.lr * factor:.3g}): "
                f"{self._cure()}"
            )

    def _cure(self) -> str:
        return f"try a lower lr, clip=1.0, or precision 32-true (here {self.settings.precision})"

    def _log(self, seconds: float, shares: dict[str, float]) -> None:
        losses = self._mean_over_ranks(torch.stack([loss.to(self.fabric.device) for loss in self.window]))
        self.window = []
        values = {"loss": float(losses.mean()), "lr": self.optimizer.param_groups[-1]["lr"], "seconds": seconds}
        blocks = {
            name: {
                key: value if value is not None and math.isfinite(value) else None  # JSON has no NaN
                for key, value in [
                    ("contribution", p.contribution),
                    ("gamma", p.gamma()),
                    ("gradient", shares[name]),
                ]
            }
            for name, p in self.probes.items()
        }
        self._record(values, {"loss": values["loss"], "lr": values["lr"]})
        if blocks:
            flat = {f"{block}/{key}": v for block, entry in blocks.items() for key, v in entry.items()}
            self._record({"blocks": blocks}, flat)
        if self.progress:
            self.progress(self.step, self.settings.steps, values)

    def _validate(self) -> "Judged":
        judged = self._judge()
        values = self.task.scores(judged)
        self._record({"val": values}, {f"val/{k}": v for k, v in values.items() if not isinstance(v, list | dict)})
        if self.progress:
            self.progress(self.step, self.settings.steps, values)
        return judged

    def _judge(self) -> "Judged":
        fabric = self.fabric
        network = self.network if self.ema is None else self.ema.module
        if fabric.world_size > 1:
            for buffer in network.buffers():  # every process evaluates the network of the first
                torch.distributed.broadcast(buffer, 0)
        broken: list[int] = []
        mine = evaluate(
            network,
            self.data,
            self.task,
            batch_size=max(self.settings.batch_size // fabric.world_size, 1),
            precision=self.settings.precision,
            score=self.settings.score,
            not_finite=broken,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        share = self._mean_over_ranks(torch.tensor(float(len(broken)), device=fabric.device))
        if share and self.step == self.settings.steps:  # before, the next steps may mend it
            count = round(float(share) * fabric.world_size)
            raise TrainingError(
                f"after the last step the outputs of {count} of {len(self.data.val)} validation samples are not "
                f"finite: {self._cure()}"
            )
        if fabric.world_size == 1:
            return mine
        of_all = {
            name: fabric.all_reduce(torch.from_numpy(array).to(fabric.device), reduce_op="sum")
            for name, array in mine.items()
        }
        return {name: cast(Tensor, array).cpu().numpy() for name, array in of_all.items()}

    def _record(self, entry: dict[str, Any], scalars: dict[str, float | None]) -> None:
        if self.records is not None:
            self.records.write({"step": self.step, **entry})
        if self.board is not None:
            for name, value in scalars.items():
                if value is not None:
                    self.board.add_scalar(name, value, self.step)

    def _save(self) -> None:
        if self.records is not None:
            self.records.sync()
            state = {
                "step": self.step,
                "seconds": self.seconds,
                "window": [float(loss) for loss in self.window],
                "notes": self.notes,
                "settings": _decisive(self.settings, self.seed),
            }
            optimizer = {
                "optimizer": self.optimizer.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),
            }
            ema = None if self.ema is None else self.ema.module.state_dict()
            save_checkpoint(self.folder, Checkpoint(self.step, self.network.state_dict(), optimizer, state, ema))
        self.fabric.barrier()

    def _finish(self, judged: "Judged | None") -> dict[str, Any]:
        if judged is None:  # killed between the last checkpoint and the files below, or these are damaged
            judged = self._judge()
        if self.ema is not None:
            self.network.load_state_dict(self.ema.module.state_dict())
        state = self.network.state_dict()
        if (name := first_not_finite(state, self.network)) is not None:
            raise TrainingError(f"after the last step {name} is not finite: {self._cure()}")
        if self.main:
            write_atomically(self.folder / "final.safetensors", lambda path: save_tensors(state, path))
            save_arrays(self.folder / f"{self.task.file}.npz", **judged)
        self.network.eval()
        self.fabric.barrier()
        return {**self.task.scores(judged), "step": self.step, "seconds": self.seconds, "notes": self.notes}

    def close(self) -> None:
        if self.records is not None:
            self.records.close()
        if self.board is not None:
            self.board.close()


def _finished(
    network: nn.Module, data: "Data", task: "Task", settings: Settings, folder: Path
) -> dict[str, Any] | None:
    """The result of a run that is complete, with its weights in the network; None where something is damaged."""
    judged = read_arrays(folder / f"{task.file}.npz")
    if not task.fits(judged, len(data.val), len(data.classes)):
        return None
    if settings.precision == "64-true":
        network.double()
    final = load_weights(folder / "final.safetensors", network)
    if final is None:
        return None
    network.load_state_dict(final)
    network.eval()
    state = newest_state(folder)
    return {
        **task.scores(judged),
        "step": state.get("step", settings.steps),
        "seconds": state.get("seconds"),
        "notes": state.get("notes") or [],
    }


def _decisive(settings: Settings, seed: int) -> dict[str, Any]:
    """What must stay the same for a run to be resumed, as JSON gives it back."""
    free = ("checkpoint_every", "tensorboard", "accelerator", "devices", "score")
    decisive = {key: value for key, value in asdict(settings).items() if key not in free}
    return json.loads(json.dumps({"seed": seed, **decisive}))


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ValueError("tensorboard is not installed: pip install 'lookfar[tensorboard]'") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
