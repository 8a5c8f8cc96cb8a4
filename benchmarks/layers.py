"""The tables of ``docs/layers.md`` from the folders of finished or unfinished studies of layers.

lookfar study studies/layers_small.yaml --out runs/layers_small --workers 1
python benchmarks/layers.py runs/layers_small [runs/layers_resnet10t ...]
"""

import argparse
from pathlib import Path

from mixers import MARK, ran, seeds_of

from lookfar._tables import markdown_table
from lookfar.study._files import write_text
from lookfar.study.results import load
from lookfar.study.rows import Summary

PAGE = Path(__file__).parents[1] / "docs/layers.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    args = parser.parse_args()
    mark = MARK.replace("mixers", "layers")
    before = PAGE.read_text(encoding="utf-8").partition(mark)[0]
    write_text(PAGE, f"{before}{mark}\n" + "\n".join(section(folder) for folder in args.folders))


def section(folder: Path) -> str:
    """One study: what it ran, and a row a layer."""
    results = load(folder)
    score = results.task.words.score
    heads = f"layer|parameters|GFLOPs|time|{score} ± 95 %|each seed|against the convolution|verdict"
    rows = [row(one, seeds_of(results, one)) for one in results.summaries]
    return f"""## {folder.name}

The host {results.plan.host}; {ran(results)} Parameters and GFLOPs are the whole network's; its
time on one image is given over that of the network with its convolutions.

{markdown_table([*heads.split("|"), "data"], rows)}
"""


def row(one: Summary, seeds: str) -> list[str]:
    return [
        "convolution (baseline)" if one.candidate == "baseline" else f"`{one.candidate}`",
        "–" if one.parameters is None else f"{one.parameters:,}",
        "–" if one.flops is None else f"{one.flops / 1e9:.3g}",
        "–" if one.latency is None or one.latency.ratio is None else f"{one.latency.ratio:.2f}",
        str(one.score) if one.score else "–",
        seeds,
        str(one.difference) if one.difference else "–",
        one.short or "–",
        "on scenes",
    ]


if __name__ == "__main__":
    main()
