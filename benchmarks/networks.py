"""Whole networks beside mmsegmentation's: images a second and peak memory of every head on ResNet-50 at stride 8.

    .venv-oracles/bin/python benchmarks/networks.py        # .venv-oracles: make oracles
    python benchmarks/networks.py --only danet,ccnet --again

One image of Cityscapes' crop in evaluation, one thread, float32, from the image to logits of its size. The peer is
mmsegmentation's own configuration with 19 classes, whose weights ours takes; a row is measured only after both gave the
same logits in float64 at a small size. They are timed in turn, by processor time; the ratio of each round is peer /
ours, so above 1 is ours. Rows are written as they are measured, to benchmarks/results/networks-cpu.json and
docs/speed.md; a second run adds what is missing, ``--again`` measures anew what is chosen.
"""

import copy
import statistics
import sys
import warnings
from functools import partial
from typing import Any

import torch
from kept import ROOT, command, fill, machines
from peers import ratios
from torch import Tensor, nn

from lookfar import create_network, weights
from lookfar._tables import markdown_table
from lookfar.cost import keep_pages, measure_in_turn, peak_memory
from lookfar.networks.plans import HEADS

sys.path.insert(0, str(ROOT / "tests"))
from oracles.mmsegmentation import NAMES, build, config_of, distance, resized

SIZE, CLASSES, ROUNDS = (512, 1024), 19, 3
# one compiled operator, of which the oracle has a stand-in in Python: right, but no measure of speed
WITHOUT_PEER = ("psanet",)


class Peer(nn.Module):
    """mmsegmentation's network as ours is called: images to logits of their size."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = build(config_of(name))

    def forward(self, images: Tensor) -> Tensor:
        return resized(self.network, images)


def pair(name: str) -> dict[str, nn.Module]:
    """Ours, and the peer where there is one, with the same weights.

    Raises:
        AssertionError: Their logits differ.
    """
    torch.manual_seed(0)
    ours = create_network(f"{name}_resnet50_d8", CLASSES).eval()
    if name not in NAMES or name in WITHOUT_PEER:
        return {"ours": ours}
    peer = Peer(name)
    weights.load(ours, peer.network.state_dict())
    image = torch.randn(1, 3, 65, 49, dtype=torch.float64)
    with torch.no_grad():
        got, want = (copy.deepcopy(network).double()(image) for network in (ours, peer))
    off = distance(got, want)
    assert off < 1e-9, f"{name}: logits are off by {off:.1e}"
    return {"ours": ours, "peer": peer}


def measure(name: str) -> Any:
    """A row: milliseconds of each round, and peak memory."""
    networks = pair(name)
    image = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        memory = {which: peak_memory(partial(network, image)) / 1e6 for which, network in networks.items()}
    times = measure_in_turn(networks, image, rounds=ROUNDS, calls=1, warm_up=False)  # peak_memory has called each
    return {
        "ms": times["ours"],
        "mb": memory["ours"],
        "peer_ms": times.get("peer"),
        "peer_mb": memory.get("peer"),
    }


def line(row: Any) -> tuple[Any, ...]:
    """A row as the table has it."""
    shown = (f"`{row['key'][0]}_resnet50_d8`", 1000 / statistics.median(row["ms"]))
    if row["peer_ms"] is None:
        return *shown, None, "–", row["mb"], None
    r = ratios(row)
    return *shown, statistics.median(r), f"{r[0]:.2f} to {r[-1]:.2f}", row["mb"], row["peer_mb"] / row["mb"]


def section(rows: list[Any]) -> str:
    headers = ["network", "images / s", "time", "range", "MB", "memory"]
    return (
        f"`python benchmarks/networks.py`: {machines(rows)}, one thread, torch {torch.__version__}, float32, one image "
        f"of {SIZE[0]}×{SIZE[1]}, {CLASSES} classes, evaluation, {ROUNDS} rounds in turn.\n\n"
        f"{markdown_table(headers, [line(row) for row in rows])}"
    )


def main() -> None:
    args = command(__doc__, "heads").parse_args()

    warnings.simplefilter("ignore")
    keep_pages()
    torch.set_num_threads(1)
    fill(
        "networks",
        [(name,) for name in (args.only.split(",") if args.only else HEADS)],
        measure=measure,
        line=line,
        section=section,
        order=lambda key: list(HEADS).index(key[0]),
        again=args.again,
    )


if __name__ == "__main__":
    main()
