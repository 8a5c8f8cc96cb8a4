"""SENet: the authors' Caffe layers, the PyTorch port without biases."""

from torch import nn

from lookfar import create_block
from translations import Case, translates


@translates("SELayer")
def port(case: Case) -> nn.Module:
    return create_block(
        "squeeze_excitation", case.args["channel"], reduction=case.args.get("reduction", 16), bias=False
    )


@translates("SE block")
def caffe(case: Case) -> nn.Module:
    return create_block("squeeze_excitation", case.args["channels"], reduction=case.args.get("reduction", 16))
