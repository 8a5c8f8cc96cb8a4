"""Our blocks beside what one would pick instead, in one run: time, peak memory, and their ratios.

    make bench
    python benchmarks/peers.py --only position_attention --sizes 97x97

A pair is measured only after both had the same weights, the same output and the same gradient of the input. They are
timed in turn, round by round, by the processor time of one thread, with cold caches; the ratio of each round is peer /
ours, so above 1 is ours. A run of everything, or one with ``--update``, writes benchmarks/results/DEVICE.json and
docs/performance.md.
"""

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from blocks import machine
from pairs import PAIRS, WHY, Pair
from torch import Tensor, nn

from lookfar._tables import markdown_table
from lookfar.cost import keep_pages, measure_in_turn, peak_memory
from lookfar.cost.measure import Inputs, caller

ROOT = Path(__file__).parent.parent
# what networks of stride 8 give for Cityscapes' crops, half a full frame, and ImageNet at stride 16
SIZES = {(65, 65): 512, (97, 97): 256, (128, 256): 64, (14, 14): 1024}
LARGEST = 6e9  # bytes that a peer's weights of all pairs may take, six copies of them in a training step


def same(pair: Pair) -> None:
    """Outputs and gradients of the two, in float64, at an odd size.

    Raises:
        AssertionError: They differ.
    """
    torch.set_default_dtype(torch.float64)  # mmsegmentation draws in the default precision
    try:
        ours, peer = (module.double() for module in pair.create(64))
        for training in (False, True):
            x = torch.randn(2, 64, 17, 22)
            (y, dx), (want, dwant) = (_both(module.train(training), x) for module in (ours, peer))
            for what, a, b in (("output", y, want), ("gradient", dx, dwant)):
                off = (a - b).abs().max() / b.abs().max()
                # mmsegmentation's disentangled block has its temperature in float32
                assert off < 1e-7, f"{pair.ours}, {pair.peer}: the {what} is off by {off:.1e} ({training=})"
    finally:
        torch.set_default_dtype(torch.float32)


def _both(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = module(x)
    (dx,) = torch.autograd.grad((y * torch.linspace(-1, 2, y.numel()).view(y.shape)).sum(), x)
    return y.detach(), dx


def fits(pair: Pair, size: tuple[int, int], backward: bool) -> bool:
    positions = size[0] * size[1]
    return 6 * pair.weights * positions**2 * 4 * (2 if backward else 1) <= LARGEST


def measure(pair: Pair, size: tuple[int, int], channels: int, backward: bool, change: Callable[[Any], Any]) -> Any:
    """A row: times of each round, peak memory."""
    ours, peer = map(change, pair.create(channels))
    modules: dict[str, nn.Module] = {"ours": ours, "peer": peer}
    batch = 2 if backward else 1  # a BatchNorm behind a pooling to one position does not train on one
    x = change(torch.randn(batch, channels, *size))
    memory, begin = [], time.process_time()
    for module in modules.values():
        call = caller(copy.deepcopy(module).train(backward), Inputs((x,)), backward=backward)
        memory.append(peak_memory(call, x.device))
    long = time.process_time() - begin > 1
    times = measure_in_turn(modules, x, backward=backward, rounds=3 if long else 7, warm_up=not long, budget=0.5)
    return {
        "ours": pair.ours,
        "peer": pair.peer,
        "size": list(size),
        "channels": channels,
        "passes": "both" if backward else "forward",
        "ms": times["ours"],
        "peer_ms": times["peer"],
        "mb": memory[0] / 1e6,
        "peer_mb": memory[1] / 1e6,
    }


def ratios(row: Any) -> list[float]:
    return sorted(theirs / ours for ours, theirs in zip(row["ms"], row["peer_ms"]))


def rows(chosen: list[Pair], sizes: dict[tuple[int, int], int], args: argparse.Namespace) -> Iterator[Any]:
    dtype = getattr(torch, args.dtype)

    def change(t: Any) -> Any:
        t = t.to(args.device, dtype)
        return t.to(memory_format=torch.channels_last) if args.channels_last else t

    for pair in chosen:
        if pair.missing:
            print(f"{pair.ours}: {pair.missing} is not installed", flush=True)
            continue
        same(pair)
        for size, channels in sizes.items():
            for backward in (False, True):
                if not fits(pair, size, backward):
                    continue
                row = measure(pair, size, channels, backward, change)
                r = ratios(row)
                print(
                    f"{pair.ours} | {pair.peer} | {size[0]}x{size[1]}, {channels} | {row['passes']} | "
                    f"{min(row['ms']):.2f} ms | {statistics.median(r):.2f} ({r[0]:.2f} to {r[-1]:.2f}) | "
                    f"{row['mb']:.1f} MB | {row['peer_mb'] / max(row['mb'], 1e-6):.2f}",
                    flush=True,
                )
                yield row


def document(found: list[Any], head: str) -> str:
    """docs/performance.md."""
    parts: list[str] = []
    below: list[str] = []
    for (h, w), channels in SIZES.items():
        lines = []
        for row in found:
            if row["size"] != [h, w] or row["channels"] != channels:
                continue
            r, memory = ratios(row), row["peer_mb"] / row["mb"]
            lines.append(
                (
                    f"`{row['ours']}`", row["peer"], row["passes"], min(row["ms"]), statistics.median(r),
                    f"{r[0]:.2f} to {r[-1]:.2f}", row["mb"], memory,
                )
            )  # fmt: skip
            lost = [
                what
                for what, ratio in (("time", round(statistics.median(r), 2)), ("memory", round(memory, 2)))
                if ratio < 1
            ]
            if lost:
                reason = WHY.get(row["peer"], "")
                reach = f", {r[0]:.2f} to {r[-1]:.2f} over the rounds" if "time" in lost else ""
                numbers = " and ".join(
                    f"{what} {statistics.median(r) if what == 'time' else memory:.2f}" for what in lost
                )
                below.append(
                    f"- `{row['ours']}` beside {row['peer']}, {h}×{w}, {row['passes']}: {numbers}{reach}. {reason}"
                )
        if not lines:
            parts.append(f"## {h}×{w}, {channels} channels\n\nNot measured in this run.")
            continue
        table = markdown_table(["ours", "peer", "passes", "ms", "time", "range", "MB", "memory"], lines)
        parts.append(f"## {h}×{w}, {channels} channels\n\n{table}")
    ends = "\n".join(line.rstrip() for line in below) or "None."
    return (
        "\n\n".join(
            [head, *parts, f"## Rows below 1\n\nReasons are read off the code of both, not measured.\n\n{ends}"]
        )
        + "\n"
    )


def heading(args: argparse.Namespace) -> str:
    return f"""# Speed and memory beside other libraries

`make bench` writes this page: {machine(args.device)}, one thread, torch {torch.__version__}, float32. Each pair had the
same weights, the same output and the same gradient before it was measured. Time is the processor time of a call with
cold caches, taken in turn with the peer's; `ms` is our fastest round, `time` the median over rounds of peer / ours, so
above 1 is ours, `range` its least and largest. `memory` is the ratio of exact peak memories beyond parameters and input
(docs/cost.md). `forward` is one image in evaluation, `both` a forward and a backward pass of two images in training. A
peer whose weights of all pairs of positions would not fit into the memory has no row; other rows that are not here were
not measured yet (`python benchmarks/peers.py --update --sizes 97x97` adds some).

It has never run on a GPU: `make bench-gpu` is there for whoever has one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="pairs whose text holds one of these, divided by |")
    parser.add_argument("--sizes", default="", help="as in 97x97,65x65")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--update", action="store_true", help="put these rows into the files, beside those of before")
    args = parser.parse_args()

    warnings.simplefilter("ignore")
    keep_pages()
    words = [word for word in args.only.split("|") if word]
    chosen = [p for p in PAIRS if not words or any(word in f"{p.ours} {p.peer}" for word in words)]
    wanted = [tuple(map(int, s.split("x"))) for s in args.sizes.split(",") if s]
    sizes = {size: channels for size, channels in SIZES.items() if not wanted or size in wanted}
    plain = args.dtype == "float32" and not args.channels_last
    keep = plain and (args.update or not (words or wanted))
    file = ROOT / f"benchmarks/results/{args.device}.json"
    old = json.loads(file.read_text())["rows"] if args.update and file.exists() else []
    found = {_key(row): row for row in old}
    for row in rows(chosen, sizes, args):
        found[_key(row)] = row
        if keep:  # as it goes: a run that is ended leaves its rows
            write(file, list(found.values()), args)
    if keep and found:
        write(file, list(found.values()), args)


def write(file: Path, found: list[Any], args: argparse.Namespace) -> None:
    """Both files, rows in the order of the pairs; those of pairs that are no more are left out."""
    order = [pair.ours + pair.peer for pair in PAIRS]
    found = [row for row in found if row["ours"] + row["peer"] in order]
    found.sort(key=lambda row: order.index(row["ours"] + row["peer"]))
    file.write_text(json.dumps({"machine": machine(args.device), "torch": torch.__version__, "rows": found}) + "\n")
    if args.device == "cpu":
        (ROOT / "docs/performance.md").write_text(document(found, heading(args)), encoding="utf-8")


def _key(row: Any) -> tuple[Any, ...]:
    return row["ours"], row["peer"], *row["size"], row["channels"], row["passes"]


if __name__ == "__main__":
    main()
