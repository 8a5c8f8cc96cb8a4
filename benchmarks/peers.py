"""Our blocks beside what one would pick instead, in one run: time, peak memory, and their ratios.

    make bench
    python benchmarks/peers.py --only position_attention --sizes 97x97 --modes float32,bfloat16

A pair is measured only after both had the same weights, the same output and the same gradient of the input. They are
timed in turn, round by round, by the processor time of one thread (with two threads by the clock on the wall), with
cold caches; the ratio of each round is peer / ours, so above 1 is ours. Every row is written as it is measured, to
benchmarks/results/DEVICE.json and docs/performance.md, and a second run adds what this machine has not measured;
``--again`` measures anew what is chosen. Rows of other machines stay, under titles that name them.
"""

import argparse
import copy
import itertools
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from blocks import machine
from kept import in_turn, place, stored
from pairs import HALF, PAIRS, WHY, Pair
from torch import Tensor, nn

from lookfar._tables import markdown_table
from lookfar.cost import keep_pages, measure_in_turn, peak_memory
from lookfar.cost.measure import Inputs, caller

ROOT = Path(__file__).parent.parent
# what networks of stride 8 give for Cityscapes' crops and full frames, ImageNet at stride 16, a clip
SIZES: list[tuple[tuple[int, ...], int]] = [
    ((97, 97), 256),
    ((65, 65), 512),
    ((14, 14), 1024),
    ((97, 97), 512),
    ((128, 256), 64),
    ((4, 28, 28), 256),
]
MODES = {
    "float32": "float32, one thread",
    "bfloat16": "bfloat16, one thread",
    "channels_last": "float32 in channels_last, one thread",
    "threads2": "float32, two threads",
}
WHENCE = "Reasons are read off the code of both, not measured; what was tried was."
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
            x = torch.randn(2, 64, *(17, 22) if pair.dims == 2 else (3, 9, 10))
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


def fits(pair: Pair, size: tuple[int, ...], backward: bool) -> bool:
    return 6 * pair.weights * math.prod(size) ** 2 * 4 * (2 if backward else 1) <= LARGEST


def changed(t: Any, mode: str, device: str) -> Any:
    """A module or a map as the mode has it."""
    t = t.to(device, torch.bfloat16 if mode == "bfloat16" else torch.float32)
    if mode != "channels_last":
        return t
    video = any(p.dim() == 5 for p in (t.parameters() if isinstance(t, nn.Module) else [t]))
    return t.to(memory_format=torch.channels_last_3d if video else torch.channels_last)


def measure(pair: Pair, size: tuple[int, ...], channels: int, backward: bool, mode: str, device: str) -> Any:
    """A row: times of each round, peak memory."""
    ours, peer = (changed(module, mode, device) for module in pair.create(channels))
    modules: dict[str, nn.Module] = {"ours": ours, "peer": peer}
    batch = 2 if backward else 1  # a BatchNorm behind a pooling to one position does not train on one
    x = changed(torch.randn(batch, channels, *size), mode, device)
    memory, begin = [], time.process_time()
    for module in modules.values():
        call = caller(copy.deepcopy(module).train(backward), Inputs((x,)), backward=backward)
        memory.append(peak_memory(call, x.device))
    long = time.process_time() - begin > 1
    if mode == "threads2":
        times = on_threads(modules, x, backward, 2, 3 if long else 7)
    else:
        times = measure_in_turn(modules, x, backward=backward, rounds=3 if long else 7, warm_up=not long, budget=0.5)
    return {
        "ours": pair.ours,
        "peer": pair.peer,
        "size": list(size),
        "channels": channels,
        "passes": "both" if backward else "forward",
        "mode": mode,
        "machine": machine(device),
        "ms": times["ours"],
        "peer_ms": times["peer"],
        "mb": memory[0] / 1e6,
        "peer_mb": memory[1] / 1e6,
    }


def on_threads(
    modules: dict[str, nn.Module], x: Tensor, backward: bool, threads: int, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds by the clock, in turn, one number a round: the fastest of up to three calls."""
    calls = {
        name: caller(copy.deepcopy(module).train(backward), Inputs((x,)), backward=backward)
        for name, module in modules.items()
    }

    def fastest(call: Callable[[], Any]) -> float:
        took: list[float] = []
        while len(took) < 3 and sum(took) < 0.5:
            begin = time.perf_counter()
            call()
            took.append(time.perf_counter() - begin)
        return 1000 * min(took)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        times = in_turn(calls, rounds + 1, fastest)
    finally:
        torch.set_num_threads(before)
    return {name: found[1:] for name, found in times.items()}  # the first round warms up


def ratios(row: Any) -> list[float]:
    return sorted(theirs / ours for ours, theirs in zip(row["ms"], row["peer_ms"]))


def rows(
    chosen: list[Pair], sizes: list[tuple[tuple[int, ...], int]], modes: list[str], known: set[Any], device: str
) -> Iterator[Any]:
    """Rows that are not known, the plainest mode first."""
    checked: set[str] = set()
    for mode in modes:
        for (size, channels), pair, backward in itertools.product(sizes, chosen, (False, True)):
            passes = "both" if backward else "forward"
            if len(size) != pair.dims or not fits(pair, size, backward):
                continue
            if (pair.ours, pair.peer, *size, channels, passes, mode, machine(device)) in known:
                continue
            if pair.missing:
                print(f"{pair.ours}: {pair.missing} is not installed", flush=True)
                continue
            if pair.ours + pair.peer not in checked:
                same(pair)
                checked.add(pair.ours + pair.peer)
            try:
                row = measure(pair, size, channels, backward, mode, device)
            except (RuntimeError, NotImplementedError) as error:  # not every peer runs in bfloat16
                print(f"{pair.ours} | {pair.peer} | {mode}: {str(error).splitlines()[0]}", flush=True)
                continue
            r = ratios(row)
            print(
                f"{pair.ours} | {pair.peer} | {_times(size)}, {channels} | {passes} | {mode} | "
                f"{min(row['ms']):.2f} ms | {statistics.median(r):.2f} ({r[0]:.2f} to {r[-1]:.2f}) | "
                f"{row['mb']:.1f} MB | {row['peer_mb'] / max(row['mb'], 1e-6):.2f}",
                flush=True,
            )
            yield row


def _times(size: Any) -> str:
    return "×".join(map(str, size))


def most_measured(found: list[Any]) -> str:
    return statistics.mode(row["machine"] for row in found)


def document(found: list[Any], head: str) -> str:
    """docs/performance.md, rows of the machine that measured most of them first."""
    parts, below, missing = [], [], []
    here_on = most_measured(found)
    machines = [here_on, *sorted({row["machine"] for row in found} - {here_on})]
    for on, (mode, about), (size, channels) in itertools.product(machines, MODES.items(), SIZES):
        if on != here_on:
            about = f"{about}, on {on}"
        title = f"## {_times(size)}, {channels} channels, {about}"
        key = [*size], channels, mode, on
        here = [r for r in found if (r["size"], r["channels"], r["mode"], r["machine"]) == key]
        lines = []
        for row in here:
            r, memory = ratios(row), row["peer_mb"] / row["mb"]
            time_, reach = statistics.median(r), f"{r[0]:.2f} to {r[-1]:.2f}"
            lines.append(
                (f"`{row['ours']}`", row["peer"], row["passes"], min(row["ms"]), time_, reach, row["mb"], memory)
            )
            lost = [f"{what} {n:.2f}" for what, n in (("time", time_), ("memory", memory)) if round(n, 2) < 1]
            if lost:
                over = f", {reach} over the rounds" if round(time_, 2) < 1 else ""
                where = f"{_times(size)}, {channels} channels, {about}, {row['passes']}"
                reason = "" if mode == "bfloat16" else f" {WHY.get(row['peer'], '')}".rstrip()
                below.append(f"- `{row['ours']}` beside {row['peer']}, {where}: {' and '.join(lost)}{over}.{reason}")
        columns = ["ours", "peer", "passes", "ms", "time", "range", "MB", "memory"]
        if lines:
            parts.append(f"{title}\n\n{markdown_table(columns, lines)}")
        elif on == here_on and not any(
            ([*size], channels, mode) == (r["size"], r["channels"], r["mode"]) for r in found
        ):
            missing.append(f"- {title.removeprefix('## ')}")
    parts += ["\n\n".join(["## Not measured yet", "\n".join(missing)])] if missing else []
    ends = "\n".join(line.rstrip() for line in below) or "None."
    last = f"## Rows below 1\n\n{WHENCE} {HALF}\n\n{ends}"
    return "\n\n".join([head, *parts, last]) + "\n"


def summary(found: list[Any]) -> str:
    """What the README says of all rows in float32, NCHW, one thread, of the machine that measured most of them."""
    plain = [row for row in found if row["mode"] == "float32"]
    most = most_measured(plain)
    plain = [row for row in plain if row["machine"] == most]
    time_ = [statistics.median(ratios(row)) for row in plain]
    memory = [row["peer_mb"] / row["mb"] for row in plain]
    won = [sum(round(ratio, 2) >= 1 for ratio in found) for found in (time_, memory)]
    return (
        f"Beside mmcv, mmsegmentation, timm and plain PyTorch, with the same weights and outputs, in float32 on one "
        f"CPU\nthread: of {len(plain)} rows {won[0]} take no longer than the peer (median of peer / ours "
        f"{statistics.median(time_):.2f}), {won[1]} no more\nmemory (median {statistics.median(memory):.1f}).\n"
        f"[All rows, those below 1 with their reasons](docs/performance.md), by `make bench`."
    )


def heading(found: list[Any]) -> str:
    return f"""# Speed and memory beside other libraries

`make bench` writes this page: {most_measured(found)} where a title names no other machine, torch
{torch.__version__}. Each pair had the same weights, the same output and the same gradient before it was measured. Time
is the processor time of a call with cold caches (with two threads the time on the wall), taken in turn with the peer's;
`ms` is our fastest round, `time` the median over rounds of peer / ours, so above 1 is ours, `range` its least and
largest. `memory` is the ratio of exact peak memories beyond parameters and input (docs/cost.md). `forward` is one image
in evaluation, `both` a forward and a backward pass of two images in training. A peer whose weights of all pairs of
positions would not fit into the memory has no row; other rows that are not here were not measured yet: the same command
adds them.

It has never run on a GPU: `make bench-gpu` is there for whoever has one.

## One kernel instead of a loop

On CUDA, attention in windows (`ops.neighborhood`; stand-alone, local-relation and local attention, bilateral filters)
is a loop over the k² cells of a window, and every step reads and writes whole maps. There is one Triton kernel for its
forward and two for its backward pass instead, which run where `lookfar.ops.use_fused_kernels()` has been called and
Triton is there, as in torch's CUDA builds for Linux. They take product similarity, softmax, every border, stride,
dilation and bias, heads of at most 512 channels, in float32, float16 or bfloat16 with sums in float32; everything else
takes the loop.

They have never been run on a GPU either: tests hold them to the definition in Triton's interpreter on the CPU and
compile them to machine code for compute capability 9.0. So they are off until asked for. `make bench-gpu` compares them
with the loop on a card, times both, and writes beside it the time that moving the numbers below takes at least.

For a head with N queries and keys, D channels of queries and keys, and E of values, without bias:

| pass | numbers moved by the loop | by the kernels, at least | FLOPs of the loop | of the kernels |
| --- | --- | --- | --- | --- |
| forward | N k² (4 D + 3 E) | N (2 D + 2 E) | 2 N k² (D + E) | 2 N k² (D + E) |
| backward | N k² (8 D + 9 E) | N (6 D + 5 E) | 2 N k² (2 D + 2 E) | 2 N k² (5 D + 4 E) |

The kernels compute the weights again in the backward pass, and keep one number a query instead of k²."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="pairs whose text holds one of these, divided by |")
    parser.add_argument("--sizes", default="", help="as in 97x97,65x65; 97x97@256 is that of 256 channels")
    parser.add_argument("--modes", default=",".join(MODES), help=f"of {', '.join(MODES)}")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--forget", default="", metavar="MACHINE", help="leave out the rows of this machine")
    parser.add_argument("--dry", action="store_true", help="print alone, write nothing")
    args = parser.parse_args()

    warnings.simplefilter("ignore")
    keep_pages()
    words = [word for word in args.only.split("|") if word]
    chosen = [p for p in PAIRS if not words or any(word in f"{p.ours} {p.peer}" for word in words)]
    named = [("x".join(map(str, size)), channels) for size, channels in SIZES]
    wanted = {*args.sizes.split(",")} if args.sizes else {name for name, _ in named}
    if unknown := wanted - {name for name, _ in named} - {f"{name}@{channels}" for name, channels in named}:
        parser.error(f"no size {', '.join(sorted(unknown))}; there are {', '.join(dict.fromkeys(n for n, _ in named))}")
    sizes = [size for size, (name, channels) in zip(SIZES, named) if {name, f"{name}@{channels}"} & wanted]
    file = ROOT / f"benchmarks/results/{args.device}.json"
    found = {_key(row): row for row in stored(file) if row["machine"] != args.forget}
    known = set() if args.again or args.dry else {*found}
    for row in rows(chosen, sizes, args.modes.split(","), known, args.device):
        found[_key(row)] = row
        if not args.dry:  # as it goes: a run that is ended leaves its rows
            write(file, list(found.values()), args)
    if not args.dry:
        write(file, list(found.values()), args)


def write(file: Path, found: list[Any], args: argparse.Namespace) -> None:
    """Both files, rows in the order of the pairs; those of pairs that are no more are left out."""
    order = [pair.ours + pair.peer for pair in PAIRS]
    found = [row for row in found if row["ours"] + row["peer"] in order]
    found.sort(key=lambda row: order.index(row["ours"] + row["peer"]))
    file.write_text(json.dumps({"torch": torch.__version__, "rows": found}) + "\n")
    if args.device == "cpu":
        page = document(found, heading(found))
        (ROOT / "docs/performance.md").write_text(page, encoding="utf-8")
        place(ROOT / "README.md", "peers", summary(found))


def _key(row: Any) -> tuple[Any, ...]:
    return row["ours"], row["peer"], *row["size"], row["channels"], row["passes"], row["mode"], row["machine"]


if __name__ == "__main__":
    main()
