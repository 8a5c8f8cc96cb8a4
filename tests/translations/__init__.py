"""From the original classes of the golden vectors to ours: one file a system, one function a class.

A translation takes a :class:`Case` and returns the module that must reproduce it: a block (its weights are then loaded
through :mod:`lookfar.weights`, the public converter), or a :class:`Built` where more than that is needed. It reads what
the original's constructor was given (``case.args``), other settings (``case.meta``) and sizes from the arrays; never a
file's name.
"""

import importlib
import json
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """One golden vector."""

    path: Path

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.path, allow_pickle=False) as z:
            return {k: z[k] for k in z.files}

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads(str(self.arrays["meta"]))

    @property
    def source(self) -> str:
        return self.meta.get("source", "")

    @property
    def cls(self) -> str:
        return self.meta.get("class") or self.meta.get("cls") or self.meta.get("filter") or ""

    @property
    def args(self) -> dict[str, Any]:
        return self.meta.get("args", {})

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under ``prefix:``, float32, without the prefix: ``p``, ``g``, ``after``, ``bases``."""
        return {k[len(prefix) + 1 :]: torch.from_numpy(v) for k, v in self.arrays.items() if k.startswith(prefix + ":")}

    def numbered(self, name: str) -> list[Tensor]:
        """``x``, or ``x0``, ``x1``, ... in order; the same for ``y``, ``gy``, ``gx`` (None where one is absent)."""
        if name in self.arrays:
            return [torch.from_numpy(self.arrays[name])]
        keys = sorted(
            (k for k in self.arrays if k[: len(name)] == name and k[len(name) :].isdigit()),
            key=lambda k: int(k[len(name) :]),
        )
        return [torch.from_numpy(self.arrays[k]) for k in keys]

    def layer(self, name: str, default: type[nn.Module]) -> type[nn.Module]:
        """The torch class that the original was given under ``name``, however its name is written."""
        given = str(self.args.get(name) or default.__name__)
        return getattr(nn, re.sub(r"\W+$", "", given).rsplit(".", 1)[-1])

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers under the original's names."""
        return self.group("p")


@dataclass
class Built:
    """A module that stands for the original.

    Attributes:
        module: Takes the case's inputs, returns its outputs (a tensor or a tuple).
        block: The library's block inside ``module`` whose parameters the weights, gradients and buffers are of;
            None where the case has none.
        state: What to load into ``block`` instead of the case's ``p:`` (authors' names).
        loaded: The weights are already in; ``g:`` and ``after:`` are then compared under ``names``.
        names: Original name -> name in ``block``; needed only where :func:`lookfar.weights.convert` cannot tell.
        tolerance: Factor on the tolerances, with a reason in the translation.
        skip: Reason for which the case cannot be met.
    """

    module: nn.Module | Callable[..., Any]
    block: nn.Module | None = None
    state: dict[str, Tensor] | None = None
    loaded: bool = False
    names: dict[str, str] = field(default_factory=dict)
    tolerance: float = 1.0
    skip: str = ""


Translation = Callable[[Case], "nn.Module | Built"]
_TRANSLATIONS: list[tuple[str, str, Translation]] = []


def translates(cls: str, source: str = "") -> Callable[[Translation], Translation]:
    """Register a translation of the class ``cls``; ``source`` is a part of the case's source where names are shared."""

    def record(f: Translation) -> Translation:
        _TRANSLATIONS.append((cls, source, f))
        return f

    return record


def translation(case: Case) -> Translation | None:
    """The translation of a case's class, the one with the longest matching source first."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    fits = [t for t in _TRANSLATIONS if t[0] == case.cls and t[1] in case.source]
    return max(fits, key=lambda t: len(t[1]))[2] if fits else None
