"""``inspect.html``: the report's page and script about networks that were looked at."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lookfar.diagnostics import choose_images, collect_samples
from lookfar.diagnostics.block_statistics import UNITS
from lookfar.insight.inspecting import ORDER, Inspected
from lookfar.study import charts
from lookfar.study._files import write_text
from lookfar.study.answer import short_names
from lookfar.study.explorer import looks
from lookfar.study.gallery import Gallery
from lookfar.study.pictures import load_samples, named
from lookfar.study.report import fill
from lookfar.study.text import ABLATED
from lookfar.study.words import counted, ends, join, points, signed, three

if TYPE_CHECKING:
    from lookfar.tasks import Task

IMAGES = 12  # of the page


class _Seen:
    """What a page shows of an image: as its task does, or without one the largest logit of every pixel or image.

    Logits on a coarser map are brought to the image's size first.
    """

    def __init__(self, task: "Task | None") -> None:
        self.task = task

    def show(self, output: Tensor, target: Tensor) -> tuple[Tensor | str, Tensor | str]:
        if output.dim() == 3 and target.dim() == 2 and output.shape[-2:] != target.shape:
            output = F.interpolate(output[None].float(), target.shape, mode="bilinear", align_corners=False)[0]
        if self.task is not None:
            return self.task.show(output, target)
        return (target, output.argmax(0)) if output.dim() == 3 else ("", str(int(output.argmax(0))))


def write_page(found: Sequence[Inspected], path: Path, command: str) -> None:
    """Write the page.

    Args:
        found: The blocks, all shown the same images.
        path: The file.
        command: How it was made.
    """
    samples = {one.label: {0: sample} for one in found if (sample := _samples(one)) is not None}
    names = [one.label for one in found]
    styles = charts.styles(names)
    data = found[0].subject.data
    sentences = [
        {
            "name": one.label,
            "style": styles[one.label],
            "told": one.told,
            "text": looks(samples[one.label]) if one.label in samples and not one.told.reason else "",
        }
        for one in found
    ]
    shown = Gallery(samples, styles, data.classes, 0 if samples else None, sentences)
    write_text(path, fill("inspect.html.j2", shown, _values(found, styles, command)))


def _samples(one: Inspected) -> dict[str, Any] | None:
    subject, data = one.subject, one.subject.data
    indices = choose_images(len(data.val), IMAGES)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "samples.npz"
        collect_samples(subject.network, one.module, data, _Seen(subject.task), indices, path)
        found = load_samples(Path(folder))
        return None if found is None else named(found, data.classes)


def _values(found: Sequence[Inspected], styles: dict[str, charts.Style], command: str) -> dict[str, Any]:
    subject = found[0].subject
    names, task = [one.label for one in found], subject.task
    kinds = [kind for kind in ORDER if any(kind in one.scores for one in found)]
    notes = [f"{one.label}: {one.note}." for one in found if one.note]
    said = [f"{one.label}: {one.told.word}" for one in found[:4]]
    facts = [subject.data.name, counted(len(subject.data.val), "image"), "labelled" if task else "without labels"]
    unit = f"Points of {task.words.score} that it costs." if task else "Per cent of all predictions that change."
    return {
        "title": join(list(dict.fromkeys(one.subject.name for one in found))[:3]),
        "headline": "; ".join(said), "facts": [fact for fact in facts if fact], "styles": styles,
        "shorts": short_names(names), "longest": max(map(len, names)), "higher": True, "plan": None,
        "score": task.words.title if task else "changes", "columns": [ABLATED[kind] for kind in kinds],
        "ladder": [_row(one, kinds) for one in found], "unit": unit,
        "judged": task is not None, "pooled": bool(getattr(subject.network, "pooled", False)),
        "few": any(len(one.told.verdict.rungs) == 2 for one in found),
        "numbers": _numbers([one for one in found if one.statistics is not None]), "command": command, "notes": notes,
    }  # fmt: skip


def _row(one: Inspected, kinds: Sequence[str]) -> dict[str, Any]:
    task, full = one.subject.task, one.scores.get("full", 0.0)
    rungs, cells = {rung.kind: rung for rung in one.told.verdict.rungs}, {}
    for kind in kinds:
        if kind not in one.scores:
            continue
        value, rung = one.scores[kind], rungs.get(kind)
        if task is None:
            cells[ABLATED[kind]] = points(value), ""
            continue
        loss = full - value if task.higher else value - full
        found = ends(rung.low, rung.high) if rung else None
        cells[ABLATED[kind]] = signed(loss), " to ".join(found) if found else ""
    return {"name": one.label, "word": one.told.word, "full": points(full) if task else "–", "cells": cells}


def _numbers(found: Sequence[Inspected]) -> dict[str, Any] | None:
    if not found:
        return None
    whose = [(one, kind) for one in found if one.statistics is not None for kind in one.statistics.kinds or ("",)]
    rows = []
    for name, unit in UNITS.items():
        cells, labels = [], []
        for one, kind in whose:
            assert one.statistics is not None
            of = one.statistics.numbers.get(name)
            own = slice(None) if of is None else dict(one.statistics.kinds_of(of)).get(kind, slice(None))
            before = one.untrained.numbers.get(name) if one.untrained is not None else None
            parts = (of and of.mean, None if of is None or of.weighted is None else of.weighted.nanmean(0))
            for title, part in zip(("plain", "weighted", "untrained"), (*parts, before and before.mean)):
                value = None if part is None else float(part[own].mean())
                cells.append(three(None if value is None or value != value else round(value, 5)))
                labels.append(", ".join(filter(None, (one.label if len(found) > 1 else "", kind, title))))
        if any(cell != "–" for cell in cells):
            rows.append({"name": name.replace("_", " "), "unit": unit, "cells": cells, "labels": labels})
    columns = [{"name": one.label, "kind": kind} for one, kind in whose]
    return {"columns": columns, "rows": rows}
