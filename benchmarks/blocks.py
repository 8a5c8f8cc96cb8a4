"""Our fast paths beside the plain definitions, in one run: time and peak memory of the whole block, and their ratios.

    python benchmarks/blocks.py [--device cuda] [--only NAME,NAME]

The plain form is what one writes from the paper: the weights of every pair of positions by a matrix product, softmax,
another product; for criss-cross the authors' pure PyTorch form with its H + W weights a position, for windows
``unfold``; of each block the form that benchmarks/plain.py has. Both use the same weights and input, and their outputs
are compared first: no number is printed for a result that differs. Writes benchmarks/results/blocks-DEVICE.md, after
every row, so that a run that was ended goes on where it was. Rows that stand there are kept if they were measured on
the same machine and version of torch; ``--only`` measures those of some blocks again.
"""

import argparse
import platform
from pathlib import Path

import torch
from plain import AS_DEFINED, CHANNELS, PLAIN, Plain

from lookfar._tables import cell_text
from lookfar.blocks import create_block, parse_block, sample_inputs
from lookfar.cost import Cost, keep_pages, measure_cost

Row = tuple[str, ...]
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
    "stand_alone": [(64, 64)],
    "stand_alone_stem": [(64, 64)],
    "local_relation": [(64, 64)],
    "carafe": [(64, 64)],
    "pointwise_spatial_attention": [(64, 64), (96, 96)],
    "interlaced": [(64, 64), (128, 128)],
    "external_attention": [(64, 64)],
    "expectation_maximization": [(64, 64)],
    "compact_generalized_nonlocal": [(32, 32)],
    "dynamic_message_passing": [(64, 64)],
    "hamburger": [(64, 64)],
    "glore": [(64, 64)],
    "graph_projection": [(64, 64)],
    "channel_attention": [(64, 64)],
    "simplified_nonlocal": [(64, 64)],
    "pyramid_pooling(norm_layer=None)": [(64, 64)],  # one map, pooled to one position, has no batch statistics
    "adaptive_context(norm_layer=None)": [(64, 64)],
    "symbolic_graph_reasoning": [(64, 64)],
    "object_contextual": [(64, 64)],
    "relation": [(16, 20)],
    "self_attention": [(64, 64)],
    "offset_attention": [(64, 64)],
    "performer": [(64, 64)],
    "token_stage": [(64, 64)],
    "point_stage": [(64, 64)],
    "glimpse": [(256, 256)],
}
HEADS = ["block", "size", "passes", "ms", "plain ms", "time ratio", "MB", "plain MB", "memory ratio"]
FLUSHED = (
    "Numbers below the smallest normal one are zero in both: softmaxes are full of them, and some processors take a "
    "hundred times as long to multiply them, which ours avoids (docs/speed.md)."
)
AS = "With default options these run as they are defined; there is no cheaper form to measure beside that:"


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
        side = (12, 20) if name == "compact_generalized_nonlocal" else (24, 40)  # its matrix is of entries
        inputs = [t.to(device) for t in sample_inputs(block, CHANNELS, side, batch=1)]
        want, got = plain(*inputs), block(*inputs)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max(), f"{text}: the two forms differ"
    turns = [
        [measure_cost(module, CHANNELS, size, batch=1, backward=backward, repeats=1) for module in (block, plain)]
        for _ in range(rounds)
    ]
    ours, theirs = (min(costs, key=lambda cost: cost.latency_ms) for costs in zip(*turns))
    return ours, theirs


def machine(device: str) -> str:
    """What the numbers were measured on: the processor and what it can do, as its name may not tell."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    half = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}, with{'' if half else 'out'} bfloat16)"


def measured(text: str, size: tuple[int, int], *, backward: bool, device: str, rounds: int) -> Row:
    """A row of the table."""
    print(f"measuring {text} at {size[0]}x{size[1]}{', both passes' if backward else ''}", flush=True)
    ours, plain = compare(text, size, backward=backward, device=device, rounds=rounds)
    times, memory = (ours.latency_ms, plain.latency_ms), (ours.memory_mb, plain.memory_mb)
    numbers = (n for pair in (times, memory) for n in (*pair, pair[1] / pair[0]))
    return (*case(text, size, backward=backward), *map(cell_text, numbers))


def case(text: str, size: tuple[int, int], *, backward: bool) -> Row:
    """What stands before a row's numbers."""
    return f"`{text}`", f"{size[0]}×{size[1]}", "both" if backward else "forward"


def about(device: str, rounds: int) -> str:
    """What was measured, where and how: the text above the table."""
    threads = ", one thread" if device == "cpu" else ""
    return (
        f"# Fast paths beside the plain definitions\n\n"
        f"`python benchmarks/blocks.py --device {device} --rounds {rounds}`: "
        f"{machine(device)}{threads}, "
        f"torch {torch.__version__}, float32, {CHANNELS} channels, one map. Time is that of the fastest of "
        f"{rounds} calls, taken in turns; memory the exact peak beyond parameters and input (docs/cost.md); "
        f"ratios are plain / ours. Both forms gave the same output before they were measured. "
        f"{'' if device == 'cuda' else FLUSHED}\n"
    )


def kept(path: Path, head: str) -> dict[Row, Row]:
    """Rows of an earlier run with the same text above them: what stands before the numbers -> the row."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if not text.startswith(head):
        return {}
    lines = [
        tuple(cell.strip() for cell in line.strip("|").split("|")) for line in text.splitlines() if line[:1] == "|"
    ]
    return {line[:3]: line for line in lines[2:]}


def write(path: Path, head: str, rows: list[Row]) -> None:
    """The table, and the blocks that need none."""
    path.parent.mkdir(exist_ok=True)
    rule = ["---" if n < 3 else "---:" for n in range(len(HEADS))]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (HEADS, rule, *rows))
    path.write_text(f"{head}\n{table}\n\n{AS} {', '.join(f'`{name}`' for name in AS_DEFINED)}.\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="measure these blocks again, and no others: NAME,NAME")
    arguments = parser.parse_args()

    only = set(filter(None, arguments.only.split(",")))
    if unknown := only - {parse_block(text)[0] for text in CASES}:
        parser.error(f"no case of {', '.join(sorted(unknown))}")
    keep_pages()
    torch.set_flush_denormal(True)
    path = Path(__file__).parent / "results" / f"blocks-{arguments.device}.md"
    head = about(arguments.device, arguments.rounds)
    rows = kept(path, head)
    cases = [(text, size, both) for text, sizes in CASES.items() for size in sizes for both in (False, True)]
    for text, size, both in cases:
        key = case(text, size, backward=both)
        if parse_block(text)[0] in only or (not only and key not in rows):
            options = {"device": arguments.device, "rounds": arguments.rounds}
            rows[key] = measured(text, size, backward=both, **options)
            order = [case(text, size, backward=both) for text, size, both in cases]
            write(path, head, [rows[key] for key in order if key in rows])
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
