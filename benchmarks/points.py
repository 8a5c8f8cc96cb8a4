"""Do attention layers help a small network of points? The measurement that decides whether points become a task.

    python benchmarks/points.py                 three seeds, some minutes on one core

A cloud is a digit as 48 points of its ink among 48 points of clutter; the network has two layers of 64 channels between
an embedding and the maximum over all points, and names the digit. The layers are none at all, pointwise ones with a
skip of as many parameters, or PCT's offset attention. Training and validation never share a digit. Accuracies are of
1000 clouds, the same for all networks of a seed; differences are paired by seed.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookfar import create_block
from lookfar._tables import markdown_table
from lookfar.data.scenes import load_digits

INK, CLUTTER, WIDTH, JUDGED = 48, 48, 64, 1000


def clouds(split: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points ``(count, 2, 96)`` in [-1, 1], in random order, and the digits that they show, ``(count,)``."""
    images, labels = load_digits(split)
    chosen = torch.randint(len(images), (count,), generator=generator)
    ink = images[chosen].flatten(1).float()
    side = images.shape[-1]
    pixel = torch.multinomial(ink / ink.sum(1, keepdim=True), INK, replacement=True, generator=generator)
    place = torch.stack([pixel % side, pixel // side], 1) + torch.rand(count, 2, INK, generator=generator)
    digit = place / side * 2 - 1
    clutter = torch.rand(count, 2, CLUTTER, generator=generator) * 2 - 1
    points = torch.cat([digit, clutter], 2)
    order = torch.rand(count, 1, INK + CLUTTER, generator=generator).argsort(2).expand_as(points)
    return points.gather(2, order), labels[chosen].long()


class Pointwise(nn.Module):
    """What offset attention has without its attention: 1x1 layers with a skip, of as many parameters."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(channels, inner, 1, bias=False),
            nn.BatchNorm1d(inner),
            nn.ReLU(),
            nn.Conv1d(inner, channels, 1),
            nn.BatchNorm1d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x).relu()


LAYERS = {
    "none": lambda: nn.Identity(),
    "pointwise": lambda: Pointwise(WIDTH, 72),
    "offset_attention": lambda: create_block("offset_attention", WIDTH),
}


def build(layer: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(2, WIDTH, 1, bias=False),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        LAYERS[layer](),
        LAYERS[layer](),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(WIDTH, 10),
    )


def trained(layer: str, seed: int, steps: int, batch: int) -> tuple[float, int, float]:
    """Accuracy in %, parameters, seconds."""
    torch.manual_seed(seed)
    network, generator = build(layer), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    start = time.process_time()
    for _ in range(steps):
        points, labels = clouds("train", batch, generator)
        optimizer.zero_grad()
        F.cross_entropy(network(points), labels).backward()
        optimizer.step()
        schedule.step()
    points, labels = clouds("val", JUDGED, torch.Generator().manual_seed(1000 + seed))
    with torch.no_grad():
        right = network.eval()(points).argmax(1) == labels
    return 100 * float(right.double().mean()), sum(p.numel() for p in network.parameters()), time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, help="write the table here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: [trained(name, seed, args.steps, args.batch) for seed in range(args.seeds)] for name in LAYERS}
    rows = []
    for name, trials in found.items():
        against = [a - b for (a, *_), (b, *_) in zip(trials, found["pointwise"])]
        spread = statistics.stdev(against) if len(against) > 1 else float("nan")
        rows.append(
            [
                name,
                f"{trials[0][1]}",
                " / ".join(f"{accuracy:.1f}" for accuracy, *_ in trials),
                "" if name == "pointwise" else f"{statistics.mean(against):+.1f} (sd {spread:.1f})",
                f"{statistics.median(seconds for *_, seconds in trials):.0f}",
            ]
        )
    titles = ["layers", "parameters", "accuracy by seed, %", "against pointwise, points", "seconds of a core"]
    text = f"{args.steps} steps of {args.batch} clouds.\n\n{markdown_table(titles, rows)}\n"
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
