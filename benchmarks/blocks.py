"""Our fast paths beside the plain definitions, in one run: time and peak memory of the whole block, and their ratios.

    python benchmarks/blocks.py [--device cuda]

The plain form is what one writes from the paper: the weights of every pair of positions by a matrix product, softmax,
another product; for criss-cross the authors' pure PyTorch form with its H + W weights a position, for windows
``unfold``. Both use the same projections, weights and input, and their outputs are compared first: no number is printed
for a result that differs. Prints a table and writes benchmarks/results/blocks-DEVICE.md.
"""

import argparse
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookfar._tables import markdown_table
from lookfar.blocks import create_block, parse_block
from lookfar.cost import Cost, keep_pages, measure_cost

CHANNELS = 64
CASES = {
    "nonlocal": [(64, 64), (96, 96)],
    "nonlocal(mode=gaussian)": [(64, 64), (96, 96)],
    "nonlocal(mode=dot_product)": [(64, 64), (96, 96)],
    "nonlocal(mode=concatenation)": [(64, 64), (96, 96)],
    "position_attention": [(64, 64), (96, 96)],
    "disentangled_nonlocal": [(64, 64)],
    "generalized_attention": [(64, 64)],
    "feature_denoising(filter=dot)": [(64, 64)],
    "double_attention": [(64, 64)],
    "atrous_attention": [(64, 64)],
    "asymmetric_nonlocal": [(64, 64)],
    "object_context": [(64, 64)],
    "dual_attention": [(64, 64)],
    "sparse_attention": [(64, 64)],
    "attention_augmented": [(64, 64)],
    "local_attention": [(64, 64), (128, 128)],
    "criss_cross": [(96, 96), (128, 256)],
}


class Plain(nn.Module):
    """The definition: all weights, times all values."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block.finish(x, self.block.attention(x) @ self.block.values(x))


class PlainCrissCross(nn.Module):
    """CCNet in pure PyTorch, as its authors wrote it: column and row energies joined, the own position masked once."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.block.recurrence):
            x = self.step(x)
        return x

    def step(self, x: Tensor) -> Tensor:
        q, k, v = self.block.query(x), self.block.key(x), self.block.value(x)
        H = x.shape[2]
        column = torch.einsum("bchw,bcgw->bhwg", q, k)
        own = torch.eye(H, dtype=torch.bool, device=x.device)[:, None, :]
        column = column.masked_fill(own, float("-inf"))
        row = torch.einsum("bchw,bchu->bhwu", q, k)
        weights = torch.cat([column, row], -1).softmax(-1)
        y = torch.einsum("bhwg,bcgw->bchw", weights[..., :H], v) + torch.einsum("bhwu,bchu->bchw", weights[..., H:], v)
        return x + self.block.gamma * y


class PlainLocal(nn.Module):
    """Windows by ``unfold``: k^2 copies of keys and values."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.block.query(x), self.block.key(x), self.block.value(x)
        size = self.block.window["kernel_size"]
        B, D, H, W = q.shape

        def windows(t: Tensor) -> Tensor:
            return F.unfold(t, size, padding=size // 2).view(B, -1, size * size, H * W)

        logits = D**-0.5 * (q.flatten(2)[:, :, None] * windows(k)).sum(1)
        logits = logits.masked_fill(windows(torch.ones_like(x[:, :1]))[:, 0] == 0, float("-inf"))
        y = (logits.softmax(1)[:, None] * windows(v)).sum(2).view(B, -1, H, W)
        return x + self.block.project(y)


PLAIN = {"criss_cross": PlainCrissCross, "local_attention": PlainLocal}


def compare(text: str, size: tuple[int, int], *, backward: bool, device: str, rounds: int) -> tuple[Cost, Cost]:
    """Costs of ours and of the plain form, measured in turns; of each the fastest round.

    Raises:
        AssertionError: Their outputs differ.
    """
    torch.manual_seed(0)
    name, options = parse_block(text)
    block = create_block(name, CHANNELS, **options, device=device).eval()
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(0.1 * torch.randn_like(p))  # at gamma = 0 everything equals everything
    plain = PLAIN.get(name, Plain)(block).eval()
    with torch.no_grad():
        x = torch.randn(1, CHANNELS, 24, 40, device=device)
        want, got = plain(x), block(x)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max(), f"{text}: the two forms differ"
    turns = [
        [measure_cost(module, CHANNELS, size, batch=1, backward=backward, repeats=1) for module in (block, plain)]
        for _ in range(rounds)
    ]
    ours, theirs = (min(costs, key=lambda cost: cost.latency_ms) for costs in zip(*turns))
    return ours, theirs


def machine(device: str) -> str:
    """What the numbers were measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    keep_pages()
    rows = []
    for text, sizes in CASES.items():
        for size in sizes:
            for backward in (False, True):
                print(f"measuring {text} at {size[0]}x{size[1]}{', both passes' if backward else ''}", flush=True)
                ours, plain = compare(text, size, backward=backward, device=arguments.device, rounds=arguments.rounds)
                rows.append(
                    (
                        f"`{text}`", f"{size[0]}×{size[1]}", "both" if backward else "forward",
                        ours.latency_ms, plain.latency_ms, plain.latency_ms / ours.latency_ms,
                        ours.memory_mb, plain.memory_mb, plain.memory_mb / ours.memory_mb,
                    )
                )  # fmt: skip
    headers = ["block", "size", "passes", "ms", "plain ms", "time ratio", "MB", "plain MB", "memory ratio"]
    table = markdown_table(headers, rows)
    print(table)
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    threads = ", one thread" if arguments.device == "cpu" else ""
    (folder / f"blocks-{arguments.device}.md").write_text(
        f"# Fast paths beside the plain definitions\n\n"
        f"`python benchmarks/blocks.py --device {arguments.device} --rounds {arguments.rounds}`: "
        f"{machine(arguments.device)}{threads}, "
        f"torch {torch.__version__}, float32, {CHANNELS} channels, one map. Time is that of the fastest of "
        f"{arguments.rounds} calls, taken in turns; memory the exact peak beyond parameters and input (docs/cost.md); "
        f"ratios are plain / ours. Both forms gave the same output before they were measured.\n\n{table}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
