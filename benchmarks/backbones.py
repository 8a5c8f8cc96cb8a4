"""The backbones of the family's papers: parameters and FLOPs, with ``--time`` also time and memory, as a table.

python benchmarks/backbones.py [--size 224] [--time] [NAME ...]

With ``--time`` and without names the table is also written to ``benchmarks/results/backbones-cpu.md``.
"""

import argparse
import os
from pathlib import Path

import torch
from blocks import machine

from lookfar import create_network
from lookfar.cost import count_flops, measure_network
from lookfar.networks.attention_backbones import ATTENTION_BACKBONES

ALL = [*ATTENTION_BACKBONES, "sasa_resnet26:attention"]
RESULT = Path(__file__).parent / "results/backbones-cpu.md"


def row(name: str, side: int, timed: bool) -> str:
    """One network; without ``timed`` it has no numbers, which takes no time."""
    name, _, stem = name.partition(":")
    options = {"size": side, **({"stem": stem} if stem else {})}
    with torch.device("cpu" if timed else "meta"):
        network = create_network(name, **options).eval()
        images = torch.zeros(1, 3, side, side)
    millions = sum(p.numel() for p in network.parameters() if p.requires_grad) / 1e6
    cells = [f"`{name}`" + (f", {stem} stem" if stem else ""), f"{millions:.3f}"]
    if timed:
        cost = measure_network(network, images)
        cells += [f"{cost.flops / 1e9:.2f}", f"{cost.latency_ms:.0f}", f"{cost.memory_mb:.0f}"]
    else:
        with torch.no_grad():
            cells.append(f"{count_flops(network, images) / 1e9:.2f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=ALL)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--time", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    heads = ["network", "million parameters", "GFLOP", *(["forward, ms", "peak memory, MB"] if args.time else [])]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    print("\n".join(lines))
    for name in args.names:
        lines.append(row(name, args.size, args.time))
        print(lines[-1], flush=True)
    if args.time and args.names == ALL:
        load = (
            f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else "load unknown"
        )
        about = (
            f"`python benchmarks/backbones.py --time`: {machine('cpu')}, one thread, {load}, torch {torch.__version__}"
            f", float32, one image of {args.size}×{args.size}. Time is the median of ten forward passes, on "
            "a busy machine longer; memory the peak beyond parameters and input (docs/cost.md)."
        )
        page = ["# Backbones of the family's papers, time and memory", "", about, "", *lines, ""]
        RESULT.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
