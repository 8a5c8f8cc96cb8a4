"""Every context block on a GPU, our kernel beside the loop, and attention beside the card's own rate; eight minutes.

    make bench-gpu

First each block's output and gradients on the card against float64 on the CPU, in float32 (without TF32) and in
bfloat16 under autocast. Then the kernel of neighbourhood attention (`ops.use_fused_kernels`): output and gradients
against the loop over cells in float64 on the card, and the time of both, with the least time in which the card could
move what must be read and written. Then softmax attention, forward and both passes, as a share of the rate of a large
matrix product in the same precision. What the time does not reach is listed. Prints, and writes
benchmarks/results/gpu-DEVICE.md. `--device cpu` tries the script itself where there is no card, and the kernel with
TRITON_INTERPRET=1 in the environment.
"""

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from blocks import machine
from torch import Tensor, nn

from lookfar import create_block, list_blocks, ops
from lookfar._tables import markdown_table
from lookfar.blocks import sample_inputs
from lookfar.check.subject import randomise

# length of the difference over that of what is wanted
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 0.1}
# positions, D, E: position_attention and nonlocal at 97x97 with 256 channels, nonlocal at 65x65 with 512
ATTENTIONS = [(9409, 32, 256), (9409, 128, 128), (4225, 256, 256)]
KERNEL_ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
# what the kernel is asked for on maps of 17 x 22, one kernel size and one width, so that it is tuned once
WINDOWS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "dilation": (1, 2)},
    {"border": "zeros", "outside": -1.5},
    {"border": "clamped"},
]
# images, heads, D = E, side of the map, kernel size, bias of every query: stand_alone in a stage of a ResNet,
# local_attention before a head of segmentation
NEIGHBORHOODS = [(8, 8, 32, 56, 7, True), (2, 1, 128, 97, 7, False)]


def outcome(block: nn.Module, inputs: tuple[Tensor, ...], autocast: bool) -> list[Tensor]:
    """Output and gradient of the first input, in float64 on the CPU."""
    x = inputs[0].clone().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        y = block(x, *inputs[1:])
    weighting = torch.linspace(-1, 2, y.numel(), device=y.device, dtype=y.dtype).view(y.shape)
    (dx,) = torch.autograd.grad((y * weighting).sum(), x)
    return [t.detach().double().cpu() for t in (y, dx)]


def check(name: str, device: str) -> str:
    """What is wrong with a block on the device, or an empty string."""
    torch.manual_seed(0)
    block = randomise(create_block(name, 32)).eval()
    inputs = sample_inputs(block, 32, (17, 22))
    want = outcome(copy.deepcopy(block).double(), tuple(t.double() for t in inputs), autocast=False)
    block = block.to(device)
    for dtype, allowed in ALLOWED.items():
        got = outcome(block, tuple(t.to(device) for t in inputs), autocast=dtype is torch.bfloat16)
        for what, a, b in zip(("output", "gradient"), got, want):
            off = float((a - b).norm() / b.norm().clamp_min(1e-12))
            if not off <= allowed:
                return f"{what} off by {off:.1e} in {str(dtype).removeprefix('torch.')}"
    return ""


def drawn(images: int, heads: int, D: int, grid: Any, size: Any, cells: int, device: str, dtype: Any) -> list[Tensor]:
    """q, k, v and a bias of every query, which learn."""
    shapes = [(images, heads, D, *grid), (images, heads, D, *size), (images, heads, D, *size)]
    shapes.append((images, heads, cells, *grid))
    return [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes]


def check_kernel(device: str, dtype: torch.dtype, options: dict[str, Any], biased: bool) -> str:
    """What is wrong with the kernel of neighbourhood attention, or an empty string."""
    torch.manual_seed(0)
    size = (17, 22) if device == "cuda" else (3, 4)
    step = options.get("stride", 1)
    inputs = drawn(2, 2, 24, [-(-n // step) for n in size], size, 25, device, dtype)[: 4 if biased else 3]
    results = []
    for given in (inputs, [t.detach().double().requires_grad_() for t in inputs]):  # float64 takes the loop
        y = ops.neighborhood(*given[:3], bias=given[3] if biased else None, kernel_size=5, scale=0.2, **options)
        weighting = torch.linspace(-1, 2, y.numel(), device=device).view(y.shape).to(y)
        results.append([y, *torch.autograd.grad((y * weighting).sum(), given)])
    for what, a, b in zip(("output", "dq", "dk", "dv", "dbias"), *results):
        off = float((a.double() - b).norm() / b.norm())
        if not off <= KERNEL_ALLOWED[dtype]:
            return f"{what} off by {off:.1e}"
    return ""


def kernel_checks(device: str, end: float) -> Iterator[tuple[str, str, str]]:
    """Window, precision and what was found."""
    for dtype in KERNEL_ALLOWED:
        for options in WINDOWS:
            for biased in (True, False):
                name = ", ".join(f"{n}={o}" for n, o in options.items()) or "as by default"
                found = "not reached"
                if time.monotonic() < end:
                    try:
                        found = check_kernel(device, dtype, options, biased) or "as the loop in float64"
                    except Exception as error:  # one window must not end the run
                        found = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
                yield name + ", bias" * biased, str(dtype).removeprefix("torch."), found


def kernel_times(device: str, end: float) -> Iterator[tuple[Any, ...]]:
    """Case, precision and pass; milliseconds of the loop, of the kernel, and of moving what must be moved."""
    large = torch.empty(2**28 if device == "cuda" else 2**20, device=device)
    rate = 2 * large.numel() * large.itemsize / seconds(lambda: large.clone(), device)  # bytes a second
    for images, heads, D, side, size, biased in NEIGHBORHOODS:
        for dtype in KERNEL_ALLOWED:
            if time.monotonic() > end:
                return
            if device == "cpu":
                images, heads, D, side, size = 1, 1, 4, 3, 3
            q, k, v, bias = drawn(images, heads, D, (side, side), (side, side), size**2, device, dtype)
            inputs = [q, k, v, bias][: 4 if biased else 3]
            options = {"kernel_size": size, "scale": D**-0.5, "bias": bias if biased else None}

            def forward() -> None:
                with torch.no_grad():
                    ops.neighborhood(q, k, v, **options)  # noqa: B023

            def both() -> None:
                torch.autograd.grad(ops.neighborhood(q, k, v, **options).sum(), inputs)  # noqa: B023

            took = {}
            for on in (False, True):
                ops.use_fused_kernels(on)
                took[on] = [1000 * seconds(call, device) for call in (forward, both)]
            # q, k, v, y; then q, k, v, dy for each of two kernels, dq, dk, dv; a bias for three, and its gradient
            pixels = images * heads * side**2 * q.itemsize
            least = [pixels * (4 * D + biased * size**2), pixels * (15 * D + 4 * biased * size**2)]
            case = f"{images} x {heads} x {D} x {side}², {size}x{size}" + ", bias" * biased
            for what, loop, kernel, moved in zip(("forward", "both"), *took.values(), least):
                yield case, str(dtype).removeprefix("torch."), what, loop, kernel, 1000 * moved / rate


def seconds(call: Callable[[], object], device: str) -> float:
    """The median of five calls after two."""

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    times = []
    for _ in range(7):
        begin = now()
        call()
        times.append(now() - begin)
    return statistics.median(times[2:])


def rates(device: str, most: int) -> Iterator[tuple[str, str, str, float, float, float]]:
    """Op, positions and widths, precision; milliseconds of the two passes, and forward's share of the card's rate."""
    for dtype in (torch.float32, torch.bfloat16):
        n = min(8192, most)
        square = torch.randn(n, n, device=device, dtype=dtype)
        rate = 2 * n**3 / seconds(lambda: square @ square, device)  # noqa: B023
        for positions, D, E in ATTENTIONS:
            N = min(positions, most)
            q, k, v = (torch.randn(1, 1, N, d, device=device, dtype=dtype, requires_grad=True) for d in (D, D, E))
            for label, f in (("ours", ops.embedded_gaussian), ("SDPA", F.scaled_dot_product_attention)):

                def forward() -> None:
                    with torch.no_grad():
                        f(q, k, v, scale=0.1)  # noqa: B023

                def both() -> None:
                    torch.autograd.grad(f(q, k, v, scale=0.1).sum(), (q, k, v))  # noqa: B023

                alone, together = seconds(forward, device), seconds(both, device)
                share = 2 * N * N * (D + E) / alone / rate
                kind = str(dtype).removeprefix("torch.")
                yield label, f"{N}, {D}, {E}", kind, 1000 * alone, 1000 * together, share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--minutes", type=float, default=8)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is seen by torch: --device cpu tries the script")
    end = time.monotonic() + 60 * args.minutes
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found, names = [], list_blocks(kind="context")
    for name in names:
        if time.monotonic() > end - 240:  # the rest is for the kernel and the rates
            break
        try:
            wrong = check(name, args.device)
        except Exception as error:  # one block must not end the run
            wrong = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        found.append((name, wrong or "as on the CPU"))
        print(*found[-1], flush=True)
    checks, times = [], []
    if args.device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        ops.use_fused_kernels()
        checks = list(kernel_checks(args.device, end - 120))
        times = list(kernel_times(args.device, end - 60))
        ops.use_fused_kernels(False)
    rows = list(rates(args.device, 10**6 if args.device == "cuda" else 512))
    headers = ["attention", "N, D, E", "precision", "forward ms", "both ms", "share of the product's rate"]
    left = ", ".join(names[len(found) :]) or "none"
    text = "\n\n".join(
        [
            f"# On {machine(args.device)}, torch {torch.__version__}",
            markdown_table(["block", "output and gradient"], found),
            f"Not reached: {left}.",
            markdown_table(["kernel of neighbourhood attention", "precision", "output and gradients"], checks),
            markdown_table(
                ["images x heads x D x positions", "precision", "passes", "loop ms", "kernel ms", "least ms"], times
            ),
            markdown_table(headers, rows),
        ]
    )
    print(text)
    if args.device == "cuda":
        file = Path(__file__).parent / f"results/gpu-{torch.cuda.get_device_name().replace(' ', '-')}.md"
        file.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
