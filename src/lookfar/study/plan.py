"""The plan of a study: which candidates, in which host, on which data, trained how.

A plan is one flat file, ``study.yaml``; the resolved copy lies beside the results.
"""

from __future__ import annotations  # fields are read by their annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lookfar._options import Range, check, choice, nearest
from lookfar._tables import shorten
from lookfar.study._files import write_text
from lookfar.study.candidates import Candidate, canonical_own, is_reference, slug, written
from lookfar.study.plan_values import as_shown, read_value, read_yaml
from lookfar.study.sources import hashes, places, source_for

if TYPE_CHECKING:
    from lookfar.tasks import Task
    from lookfar.training import Settings

# entries that change no trial: how trials are judged, which there are, what is written beside the numbers
# (sources are compared for the trials that they concern)
FREE = ("margin", "metric", "groups", "blocks", "controls", "seeds", "checkpoint_every", "tensorboard", "sources")
OF_TASKS = ("metric", "label_smoothing", "mixup", "cutmix")  # entries that are handed to the task


BLOCKS = 500  # of a study: every one is built before the first step


def default_folder(data: str) -> Path:
    """The folder of a study for which none was given.

    >>> default_folder("scenes:lookup").as_posix(), default_folder("camvid:data/CamVid/").as_posix()
    ('runs/lookup', 'runs/CamVid')
    """
    return Path("runs") / (slug(Path(data.rpartition(":")[2]).name) or "study")


def trial_folder(study: Path, candidate: str, seed: int) -> Path:
    """Where a trial of a study lies."""
    return study / "trials" / slug(candidate) / str(seed)


@dataclass(frozen=True)
class Plan:
    """What a study compares and how; None stands for the default that fits the data (see :meth:`resolved`).

    Attributes:
        data: As for :func:`lookfar.data.open_data`: ``scenes:lookup``, ``camvid:PATH``, ``PATH``, ...
        blocks: Candidates beside baseline and control: ``nonlocal``, ``nonlocal(mode=gaussian)@layer3``; of your own
            ``my.py:MyBlock(reduction=8)``, ``package.module:MyBlock``, or the class itself.
        task: What is learned and how it is judged: ``segmentation``, ``classification``, by default what the data are
            labelled for; of your own ``my.py:Regression``, or the class.
        metric: The score of every verdict, where a task has several: the task says which.
        seeds: Repetitions of everything; seed 0, 1, ...
        steps: Optimiser steps of a trial.
        size: Height and width that the network sees.
        val: A folder or sequence for validation instead of the data set's own.
        also_val: A second set to judge by, a folder or sequence; it leaves train and is used for nothing else.
        ignore: Mask values to ignore beside 255: numbers, or colours as ``#rrggbb``.
        labels: The mask value of class 0, 1, 2 ..., in this order.
        classes: How many there are, where no names say it.
        exif: ``apply`` or ``ignore`` the orientation of images whose masks fit both ways.
        skip_bad: Skip damaged images instead of stopping.
        in_chans: Bands of the images.
        crop_pct: Of a classification: share of the shorter side of an image that validation sees, where images are
            larger than ``size``; by default what timm judges the host at.
        flip: Of a classification: training sees mirror images too.
        host: ``small``, the name of a timm model or of a published network (``danet_resnet50_d8``), or of your own
            ``my.py:build``, or the function or class itself.
        pretrained: Start from timm's pretrained weights.
        host_weights: Start from the weights of this file.
        output_stride: Of the host's feature map.
        width: Channels of the host's head (timm hosts).
        place: Stage or module after which blocks go, or a glob.
        crop: Train on crops of this height and width, changed as mmsegmentation changes them.
        norm: ``batch``: the LayerNorms of a host on tokens give way to batch norms over images and tokens.
        batch_size: Training images a step.
        lr: Peak learning rate.
        backbone_lr_factor: Of the host's backbone against the rest.
        weight_decay: Of the optimiser.
        momentum: Of SGD.
        optimizer: ``adamw`` or ``sgd``.
        schedule: ``onecycle``, ``cosine`` or ``poly``.
        clip: Largest norm of the gradient; 0 for no limit.
        class_weights: Weight of each class in the loss.
        label_smoothing: Of a classification: share of the target that is spread over all classes.
        mixup: Of a classification: two images are laid over each other in shares drawn from Beta(mixup, mixup).
        cutmix: Of a classification: a rectangle of another image is pasted in, its share drawn likewise.
        precision: As Fabric calls it: ``32-true``, ``bf16-mixed``, ``16-mixed``.
        score: Masks ``resized`` to what the network sees, or predictions at the ``original`` size of each file.
        accelerator: ``cpu``, ``cuda`` or ``mps``.
        devices: Devices (on a CPU: processes) of one trial.
        ema: Decay of an average of the weights; 0 for none.
        eval_every: Steps between validations.
        log_every: Steps between records.
        checkpoint_every: Steps between checkpoints.
        tensorboard: Also write a TensorBoard log.
        threads: Threads of a trial; part of the plan, since sums depend on it.
        controls: Plain convolutions to compare with, one for each size of the blocks of a place: ``control``,
            ``control(parameters=8480)``; a study finds them by itself.
        margin: Differences within ± so many points of the score are practically none.
        groups: Which validation images belong together: a regular expression for their names, or ``none``.
        sources: Files of your own and the hash of what they hold; filled in.

    >>> plan = Plan(data="scenes:lookup", blocks=("nonlocal", "cbam"), seeds=2)
    >>> plan.candidates
    ('baseline', 'control', 'nonlocal', 'cbam')
    >>> len(plan.trials)
    8
    """

    data: str
    blocks: tuple[str, ...]
    task: str | None = None
    metric: str | None = None
    seeds: int = 3
    steps: int | None = None
    size: tuple[int, int] | None = None
    val: str | None = None
    also_val: str | None = None
    ignore: tuple[int | str, ...] = ()
    labels: tuple[int | str, ...] = ()
    classes: int | None = None
    exif: str | None = None
    skip_bad: bool = False
    in_chans: int = 3
    crop_pct: float | None = None
    flip: bool = True
    host: str | None = None
    pretrained: bool = False
    host_weights: str | None = None
    output_stride: int | None = None
    width: int = 64
    place: str | None = None
    crop: tuple[int, int] | None = None
    norm: str | None = None
    batch_size: int | None = None
    lr: float | None = None
    backbone_lr_factor: float | None = None
    weight_decay: float = 0.01
    momentum: float = 0.9
    optimizer: str = "adamw"
    schedule: str = "onecycle"
    clip: float = 0.0
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    precision: str = "32-true"
    score: str = "resized"
    accelerator: str | None = None
    devices: int = 1
    ema: float = 0.0
    eval_every: int | None = None
    log_every: int | None = None
    checkpoint_every: int | None = None
    tensorboard: bool = False
    threads: int = 1
    controls: tuple[str, ...] = ("control",)
    margin: float = 0.5
    groups: str | None = None
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # classes and functions themselves become text, which another process can read
        several = isinstance(self.blocks, list | tuple)
        object.__setattr__(self, "blocks", tuple(map(written, self.blocks)) if several else written(self.blocks))
        object.__setattr__(self, "host", written(self.host))
        object.__setattr__(self, "task", written(self.task))
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, read_value(field.name, str(field.type), getattr(self, field.name)))
        check("seeds", self.seeds, Annotated[int, Range(1, 1000)])
        for name in ("in_chans", "output_stride", "classes"):  # settings of training check themselves
            check(name, getattr(self, name), int | None)
        check("width", self.width, Annotated[int, Range(1, 8192)])
        check("margin", self.margin, Annotated[float, Range(0, 100)])
        if len(self.blocks) + len(self.controls) > BLOCKS:
            raise ValueError(f"blocks must be at most {BLOCKS}, got {len(self.blocks) + len(self.controls)}")
        if not self.blocks and self.controls:  # without either it is the training of one network
            raise ValueError(
                "name at least one block, as in --blocks nonlocal,global_context; `lookfar blocks` lists all"
            )

    @property
    def candidates(self) -> tuple[str, ...]:
        """All that is compared, in the order in which a seed's trials run."""
        return ("baseline", *self.controls, *(b for b in self.blocks if not is_reference(b)))

    @property
    def trials(self) -> list[tuple[str, int]]:
        """Candidate and seed, seed by seed, so that a first comparison is there early."""
        return [(candidate, seed) for seed in range(self.seeds) for candidate in self.candidates]

    def resolved(self) -> Plan:
        """The same plan with canonical names and with defaults that fit the data in place of None.

        Raises:
            ValueError: A block that does not exist, or one that is there twice.
            TypeError: An option that a block does not have.
        """
        # a plan may be written for a machine without the blocks' dependencies; only here are names looked up
        choice("norm", self.norm, (None, "batch"))
        names = [str(Candidate.parse(text)) for text in self.blocks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)}: the same candidate is named twice")
        names = [name for name in names if not is_reference(name)]
        from lookfar.data import EMBEDDED, usual

        of_data = usual(self.data)
        steps = of_data.steps if self.steps is None else self.steps
        host = self.host or of_data.host
        small = host == "small"
        started = self.pretrained or self.host_weights is not None
        defaults: dict[str, Any] = {
            "task": self._task,
            "steps": steps,
            "host": of_data.host,
            "output_stride": None if self._task == "classification" else 8 if small or _is_published(self.host) else 16,
            "batch_size": of_data.batch_size,
            "lr": 3e-3 if host in ("small", "patch", "points", "vit_small_mixer") else 1e-3,
            "backbone_lr_factor": 0.3 if started else 1.0,
            "accelerator": _accelerator(),  # never "auto": the same plan means the same device
            "eval_every": max(steps // 8, 1),
            "log_every": max(min(steps // 20, 10), 1),
            "checkpoint_every": max(min(steps // 4, 100), 1),
        }
        filled = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        if self.accelerator in ("auto", "gpu"):
            filled["accelerator"] = _accelerator()
        if self.host is not None:
            filled["host"] = canonical_own("host", self.host)
        if self.crop_pct is None and self._task == "classification" and self.data not in EMBEDDED:
            from lookfar.networks import crop_pct_of

            filled["crop_pct"] = crop_pct_of(filled.get("host", of_data.host))
        filled["task"] = canonical_own("task", self._task)
        filled["sources"] = hashes([*names, filled["host"], filled["task"]])
        return dataclasses.replace(self, blocks=tuple(names), **filled)

    def find_task(self, study: Path | None = None) -> Task:
        """What is learned and how it is judged.

        Args:
            study: The folder that keeps copies of the user's own files as they were.

        Raises:
            ValueError: No such task.
            FileNotFoundError: The user's file is not there.
        """
        from lookfar.tasks import find_task

        (where,) = places([self._task]) or [""]
        unset = {field.name: field.default for field in dataclasses.fields(self)}
        options = {name: value for name in OF_TASKS if (value := getattr(self, name)) != unset[name]}
        return find_task(self._task, source_for(self.sources, where, study) if where else None, **options)

    @property
    def _task(self) -> str:
        """The task, or what the data are labelled for."""
        if self.task is not None:
            return self.task
        from lookfar.data import target_of
        from lookfar.tasks import task_for

        try:
            return task_for(target_of(self.data))
        except FileNotFoundError:  # of a study of an earlier version, which knew masks alone
            return task_for("mask")

    def settings(self) -> Settings:
        """How a trial is trained; its values are checked here. For a resolved plan.

        Raises:
            ValueError: A value that training cannot take.
        """
        from lookfar.training import Settings

        return Settings(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON hold them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "the plan") -> Plan:
        """A plan from plain values.

        Raises:
            ValueError: A name that plans do not have, a value of another kind; ``data`` or ``blocks`` missing.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = nearest(str(name)[:80], known)
                hint = f" Did you mean {near}?" if near else f" Entries: {shorten(', '.join(known), 100)}"
                raise ValueError(f"{source} has an entry {as_shown(name)} that no plan has.{hint}")
        for name in ("data", "blocks"):
            if values.get(name) is None:
                raise ValueError(
                    f"{source} does not say which {name}: give --{name}, or a plan file with an entry {name!r}"
                )
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a ``study.yaml``."""
        return cls.from_dict(read_yaml(path), str(path))

    def save(self, path: str | Path) -> None:
        """Write a ``study.yaml``."""
        import yaml

        text = yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)
        write_text(Path(path), "# A plan: `lookfar study THIS_FILE` runs it.\n" + text)


def _is_published(host: str | None) -> bool:
    from lookfar.networks.creating import is_network

    return host is not None and is_network(host)


def _accelerator() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
