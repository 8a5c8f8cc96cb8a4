"""Weights of mmsegmentation's heads in our blocks, with what the heads put around them written out here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookfar import create_block, weights

GOLDENS = Path(__file__).parents[1] / "goldens"


class Head:
    """One golden vector of a head: its settings, weights, inputs and logits, in float64."""

    def __init__(self, name: str) -> None:
        with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as z:
            self.args = json.loads(str(z["meta"]))["args"]
            arrays = {k: torch.from_numpy(z[k]) for k in z.files if k != "meta"}
        arrays = {k: v.double() if v.is_floating_point() else v for k, v in arrays.items()}
        self.state = {k[2:]: v for k, v in arrays.items() if k.startswith("p:")}
        self.x, self.y = arrays["x"], arrays["y"]

    def fill(self, block: nn.Module, parts: tuple[str, ...]) -> nn.Module:
        own = {k: v for k, v in self.state.items() if k.split(".")[0] in parts}
        return weights.load(block, own).double().eval()

    def layer(self, name: str, x: Tensor) -> Tensor:
        """A 3x3 convolution, its norm and a ReLU."""
        x = F.conv2d(x, self.state[f"{name}.conv.weight"], padding=1)
        norm = (self.state[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *norm).relu()

    def assert_logits(self, features: Tensor) -> None:
        got = F.conv2d(features, self.state["conv_seg.weight"], self.state["conv_seg.bias"])
        torch.testing.assert_close(got, self.y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["mmseg_head_bi_odd", "mmseg_head_even_mask"])
def test_psa_with_the_border_and_the_sizes_of_mmseg(name: str):
    head = Head(f"psa/{name}")
    block = create_block(
        "pointwise_spatial_attention",
        head.args["in_channels"],
        inner_channels=head.args["channels"],
        mask_size=head.args["mask_size"],
        shrink_factor=head.args["shrink_factor"],
        variant="mmseg",
        form="published",
    )
    head.fill(block, ("reduce", "reduce_p", "attention", "attention_p", "proj"))
    head.assert_logits(head.layer("bottleneck", block(head.x)))


def test_isa_whose_fusion_has_the_context_first():
    head = Head("interlaced/mmseg_head")
    block = create_block(
        "interlaced",
        head.args["channels"],
        inner_channels=head.args["isa_channels"],
        down_factor=tuple(head.args["down_factor"]),
        value_bias=True,
        form="published",
    )
    head.fill(block, ("global_relation", "local_relation", "out_conv"))
    head.assert_logits(block(head.layer("in_conv", head.x)))
