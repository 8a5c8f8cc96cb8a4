"""A study's folder without any training: what the report must cope with, in numbers drawn from a seed."""

import json
from pathlib import Path

import numpy as np

from lookfar.study.ablations import KINDS, save_ablations
from lookfar.study.latency import save_latency
from lookfar.study.plan import Plan, trial_folder
from lookfar.tasks.segmentation import counts_of, scores

GAINS = {"nonlocal": 0.20, "global_context": 0.03, "control": 0.005}


def make_fake_study(
    folder: Path,
    *,
    blocks=("nonlocal", "global_context"),
    classes=("background", "odd", "even", "odd square", "even square"),
    seeds=3,
    images=6,
    size=(64, 64),
    grid=(8, 8),
    failed=(),
    missing=(),
    gains=None,
    maps=True,
    metrics=True,
    names=None,
    photo=False,
    data="scenes:lookup",
    answers=False,
) -> Path:
    """Write a folder as a study leaves it. ``failed`` and ``missing`` hold (candidate, seed)."""
    gains = GAINS if gains is None else gains
    plan = Plan(data=data, blocks=tuple(blocks), seeds=seeds, steps=1000, host="small", place="place", batch_size=32)
    folder.mkdir(parents=True, exist_ok=True)
    plan.save(folder / "study.yaml")
    environment = {
        "place": "place",
        "data": {
            "name": data, "classes": list(classes), "train": 6000, "val": 400, "size": list(size), "in_chans": 3,
            "task": "Label each digit odd or even, and each filled square by the parity of the like-coloured digit.",
            "facts": ["6000 scenes to train on, 400 to validate", "digits of train and val are disjoint"],
        },
        "command": f"lookfar study --data {data} --blocks {','.join(blocks)} --seeds {seeds} --out runs/lookup",
        "versions": {"python": "3.11.9", "lookfar": "0.1.0", "torch": "2.15.0", "timm": "1.0.31"},
        "platform": "Linux-6.1-x86_64", "cores": 2, "workers": 2,
        "started": "2026-01-02T10:00:00+01:00", "runs": 1, "seconds": 412.3,
        "finished": "2026-01-02T10:06:52+01:00",
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(environment))
    scene = np.random.default_rng(1)
    truth = _truth(scene, images, size, len(classes))
    pictures = _picture(scene, truth, photo)
    shown = names or [f"scene {i:03d}" for i in range(images)]
    for at, candidate in enumerate(plan.candidates):
        for seed in range(seeds):
            if (candidate, seed) in missing:
                continue
            trial = trial_folder(folder, candidate, seed)
            trial.mkdir(parents=True)
            draw = np.random.default_rng([7, at, seed])
            if (candidate, seed) in failed:
                result = {"status": "failed", "reason": "TrainingError: the loss is nan at step 412", "step": 412}
                (trial / "result.json").write_text(json.dumps(result))
                continue
            gain = next((g for key, g in gains.items() if candidate.startswith(key)), 0.0)
            wrong = 0.14 - 0.55 * gain + 0.004 * draw.standard_normal() + 0.005 * (seed - 1)
            guess = _guess(np.random.default_rng([3, at, seed]), truth, max(wrong, 0.004), len(classes))
            confusion = np.stack([_confusion(t, p, len(classes)) for t, p in zip(truth, guess)])
            np.savez_compressed(trial / "confusion.npz", confusion=confusion)
            scored = scores(confusion)
            block = candidate != "baseline"
            result = {
                "status": "done", "reason": "", **scored, "step": 1000, "seconds": 41.0 + 3 * at + seed,
                "parameters": 120_000 + 4100 * at, "flops": 7.1e8 + 2.3e7 * at * (at % 3),
                "memory_mb": 14.2 + at, "block_memory_mb": 0.7 * at if block else None, "device": "CPU, 1 thread",
                "blocks": ["block"] if block else [], "notes": [],
            }  # fmt: skip
            (trial / "result.json").write_text(json.dumps(result))
            if metrics:
                (trial / "metrics.jsonl").write_text(_metrics(draw, scored["miou"], block, gain))
            found = _samples(draw, candidate, pictures, truth, guess, grid, shown, maps)
            if answers:
                found |= _answers(found, truth)
            np.savez_compressed(trial / "samples.npz", **found)
            if block:
                _ablations(
                    trial / "ablations.npz", draw, candidate, truth, max(wrong, 0.004) + 0.3 * gain, len(classes)
                )
    times = {
        c: [(2.1 + 0.31 * ((k * 5) % 4)) * (1 + 0.01 * r) for r in range(10)] for k, c in enumerate(plan.candidates)
    }
    save_latency(folder, times, "one thread of a processor")
    return folder


def _ablations(path, draw, candidate, truth, wrong, classes):
    reason = "" if "nonlocal" in candidate else f"{candidate} has no weights over positions"
    counts = {}
    for kind in KINDS[-2:] if reason else KINDS:
        guess = _guess(draw, truth, wrong, classes)
        counts[kind] = counts_of(np.stack([_confusion(t, p, classes) for t, p in zip(truth, guess)]))
    save_ablations(path, counts, reason)


def _truth(draw, images, size, classes):
    """Rectangles of each class on background, a line of void at the top."""
    truth = np.zeros((images, *size), np.uint8)
    for picture in truth:
        for label in (*range(1, classes), *range(1, min(classes, 5))):
            h, w = size[0] // 5 + 1, size[1] // 5 + 1
            y, x = draw.integers(0, size[0] - h), draw.integers(0, size[1] - w)
            picture[y : y + h, x : x + w] = label
    truth[:, :2] = 255
    return truth


def _picture(draw, truth, photo):
    colours = draw.integers(40, 255, (256, 3))
    picture = colours[truth].transpose(0, 3, 1, 2) + draw.normal(
        0, 20 if photo else 8, (len(truth), 3, *truth.shape[1:])
    )
    return picture.clip(0, 255).astype(np.uint8)


def _guess(draw, truth, wrong, classes):
    """Truth with wrong labels in blobs."""
    n, h, w = truth.shape
    coarse = draw.random((n, -(-h // 4), -(-w // 4)))
    mask = np.kron(coarse, np.ones((1, 4, 4)))[:, :h, :w] < wrong
    other = np.kron(draw.integers(0, classes, coarse.shape), np.ones((1, 4, 4), int))[:, :h, :w]
    return np.where(mask | (truth == 255), other, truth).astype(np.uint8)


def _confusion(truth, guess, classes):
    valid = truth != 255
    cells = truth[valid].astype(int) * classes + guess[valid]
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _metrics(draw, miou, block, gain):
    lines = []
    for step in range(10, 1001, 10):
        loss = 1.6 * np.exp(-step / 150) + 0.4 * (1 - gain * 3) * np.exp(-step / 900) + 0.02 * draw.random()
        lines.append({"step": step, "loss": loss, "lr": 1e-3, "seconds": step / 20})
        if step % 125 == 0 or step == 1000:
            lines.append({"step": step, "val": {"miou": miou * (1 - np.exp(-step / 260)), "accuracy": 0.9, "iou": []}})
        if block and step % 20 == 0:
            state = {
                "contribution": gain * 3 * (1 - np.exp(-step / 300)),
                "gamma": gain * 2 * step / 1000,
                "gradient": 0.05 + 0.02 * draw.random(),
            }
            lines.append({"step": step, "blocks": {"block": state}})
    return "".join(json.dumps(line) + "\n" for line in lines)


def _samples(draw, candidate, pictures, truth, guess, grid, names, maps):
    n, N = len(pictures), grid[0] * grid[1]
    found = {
        "index": np.arange(n), "name": np.array(names), "image": pictures, "truth": truth, "prediction": guess,
    }  # fmt: skip
    if candidate in ("baseline", "control") or not maps or "squeeze" in candidate:
        why = "no block" if candidate == "baseline" else f"{candidate} has no weights over positions"
        return found | {"reason": np.array(why)}
    rows, columns = (np.stack(np.meshgrid(*(np.arange(g) for g in grid), indexing="ij"), -1).reshape(-1, 2)).T
    own = draw.random((n, 1, N)) ** 6
    near = np.exp(-((rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2) / 3.0)
    share = 0.0 if "global" in candidate else 0.9
    weights = share * near * (0.2 + draw.random((n, N, N))) + (1 - share) * own + 1e-4
    weights /= weights.sum(-1, keepdims=True)
    weights = weights[:, None]  # one head
    low, high, mean = weights.min(-1), weights.max(-1), weights.mean(-2)
    stored = np.round((weights - low[..., None]) / (high - low)[..., None] * 255).astype(np.uint8)
    m_low, m_high = mean.min(-1), mean.max(-1)
    found |= {
        "map": stored, "low": low.astype(np.float32), "high": high.astype(np.float32),
        "mean": np.round((mean - m_low[..., None]) / (m_high - m_low)[..., None] * 255).astype(np.uint8),
        "mean_low": m_low, "mean_high": m_high,
        "query": np.stack([(rows + 0.5) / grid[0], (columns + 0.5) / grid[1]], -1),
        "query_size": np.array(grid), "map_size": np.array(grid), "key_size": np.array(grid),
        "feature_size": np.array(grid), "share": draw.random((n, 1, N)), "chance": draw.random((n, N)) * 0.4,
        "similarity": np.full((n, 1), 1.0 if share == 0 else 0.31), "mean_share": np.full((n, 1), 0.62),
        "mean_chance": np.full(n, 0.2), "queries_asked": np.array(N),
    }  # fmt: skip
    return found | {"reason": np.array("")}


def _answers(found, truth):
    """The left half asks for what stands in the upper right quarter."""
    n, h, w = truth.shape
    asks, holds = np.zeros_like(truth), np.zeros_like(truth)
    asks[:, :, : w // 2], holds[:, : h // 2, w // 2 :] = 1, 1
    words = {"asking": np.array("left half"), "sought": np.array("upper right"), "asks": asks, "holds": holds}
    if "map" not in found:
        return words
    left = found["query"][:, 1] < 0.5
    of = np.where(left, 0.7, np.nan)
    return words | {
        "found": np.broadcast_to(of, found["share"].shape), "found_chance": np.broadcast_to(of - 0.45, (n, len(of))),
        "mean_found": np.full((n, 1), 0.7), "mean_found_chance": np.full(n, 0.25),
    }  # fmt: skip
