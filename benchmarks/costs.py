"""FLOPs and peak memory of every block on one map, forward: the numbers on the pages of docs/blocks/.

    python benchmarks/costs.py

Both are counted, not timed, so that other programs do not matter. Writes benchmarks/results/costs-cpu.md; `make
blocks-docs` puts the rows on the pages.
"""

from functools import partial
from pathlib import Path

import torch

from lookfar._tables import markdown_table
from lookfar.blocks import block_info, create_block, list_blocks, sample_inputs
from lookfar.cost import count_flops, peak_memory

CHANNELS, SIZE = 256, (64, 64)


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name in list_blocks():
        if block_info(name).kind in ("region", "tokens"):  # they take no map
            continue
        torch.manual_seed(0)
        block = create_block(name, CHANNELS).eval()
        inputs = sample_inputs(block, CHANNELS, SIZE, batch=1)
        with torch.no_grad():
            flops, memory = count_flops(block, *inputs), peak_memory(partial(block, *inputs))
        rows.append((f"`{name}`", flops / 1e9, memory / 1e6))
        print(*rows[-1], flush=True)
    table = markdown_table(["block", "GFLOPs", "MB"], rows)
    (Path(__file__).parent / "results" / "costs-cpu.md").write_text(
        "# FLOPs and memory of every block\n\n"
        f"`python benchmarks/costs.py`: torch {torch.__version__}, float32, one map "
        f"of {SIZE[0]}×{SIZE[1]} positions and {CHANNELS} channels, default options, forward in evaluation. A "
        "multiply-add is 2 FLOPs; memory is the exact peak beyond parameters and input (docs/cost.md).\n\n"
        f"{table}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
