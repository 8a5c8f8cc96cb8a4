"""SENet: the authors' Caffe layers, the PyTorch port without biases."""

import torch

from lookfar import create_block
from translations import Built, Case, translates


def _gate(case: Case, channels: int, bias: bool) -> Built:
    block = create_block("squeeze_excitation", channels, reduction=case.args.get("reduction", 16), bias=bias)
    # fewer channels than the reduction leave the originals no hidden one; ours has one, here of zeros
    state = {k: v if v.numel() else torch.zeros([max(n, 1) for n in v.shape]) for k, v in case.state.items()}
    return Built(block, block, state=state)


@translates("SELayer")
def port(case: Case) -> Built:
    return _gate(case, case.args["channel"], bias=False)


@translates("SE block")
def caffe(case: Case) -> Built:
    return _gate(case, case.args["channels"], bias=True)
