"""How far each head is from mmsegmentation's own, as a table: ``.venv-oracles/bin/python tests/oracles/distances.py``.

The largest difference of all logits over the largest logit, of thin networks at 65x49, and of full width at 65x49.
"""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from oracles.mmsegmentation import NAMES, build, config_of, thin_config_of
from oracles.test_networks import furthest, read, saved

from lookfar import create_network, weights


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
    print(
        "| head | float64 | float64, corners aligned | float32 | ResNet-50, float64 |\n| --- | --- | --- | --- | --- |"
    )
    for name in NAMES:
        found = []
        for corners in (False, True):
            torch.manual_seed(0)
            config = thin_config_of(name, align_corners=corners)
            theirs = build(config)
            ours = read(saved(theirs, folder / "iter_80000.pth", config))
            found.append(furthest(ours, theirs, 2, 3, 65, 49))
        found.append(furthest(ours, theirs, 2, 3, 65, 49, dtype=torch.float32))
        theirs = build(config_of(name))
        ours = create_network(f"{name}_resnet50_d8", 19).eval()
        weights.load(ours, theirs.state_dict())
        found.append(furthest(ours, theirs, 1, 3, 65, 49))
        print(f"| `{name}` | {' | '.join(f'{value:.0e}' for value in found)} |", flush=True)


if __name__ == "__main__":
    main()
