"""The backbones of the family's papers: parameters and FLOPs, with ``--time`` also time and memory, as a table.

python benchmarks/backbones.py [--size 224] [--time] [NAME ...]
"""

import argparse

import torch

from lookfar import create_network
from lookfar.cost import count_flops, measure_network
from lookfar.networks.attention_backbones import ATTENTION_BACKBONES


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
    parser.add_argument("names", nargs="*", default=[*ATTENTION_BACKBONES, "sasa_resnet26:attention"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--time", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    heads = ["network", "million parameters", "GFLOP", *(["forward, ms", "peak memory, MB"] if args.time else [])]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for name in args.names:
        print(row(name, args.size, args.time), flush=True)


if __name__ == "__main__":
    main()
