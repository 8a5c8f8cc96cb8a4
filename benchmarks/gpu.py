"""Every context block on a GPU, and attention beside the card's own rate, in at most eight minutes.

    make bench-gpu

First each block's output and gradients on the card against float64 on the CPU, in float32 (without TF32) and in
bfloat16 under autocast. Then softmax attention, forward and both passes, as a share of the rate of a large matrix
product in the same precision. What the time does not reach is listed. Prints, and writes
benchmarks/results/gpu-DEVICE.md. `--device cpu` tries the script itself where there is no card.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
        if time.monotonic() > end - 90:  # the rest is for the rates
            break
        try:
            wrong = check(name, args.device)
        except Exception as error:  # one block must not end the run
            wrong = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        found.append((name, wrong or "as on the CPU"))
        print(*found[-1], flush=True)
    rows = list(rates(args.device, 10**6 if args.device == "cuda" else 512))
    headers = ["attention", "N, D, E", "precision", "forward ms", "both ms", "share of the product's rate"]
    left = ", ".join(names[len(found) :]) or "none"
    text = "\n\n".join(
        [
            f"# On {machine(args.device)}, torch {torch.__version__}",
            markdown_table(["block", "output and gradient"], found),
            f"Not reached: {left}.",
            markdown_table(headers, rows),
        ]
    )
    print(text)
    if args.device == "cuda":
        file = Path(__file__).parent / f"results/gpu-{torch.cuda.get_device_name().replace(' ', '-')}.md"
        file.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
