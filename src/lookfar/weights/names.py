"""The authors' parameter names and shapes into ours."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from lookfar.blocks import block_info

State = dict[str, Tensor]


def from_inplace_abn(state: Mapping[str, Tensor], *, eps: float = 1e-5) -> State:
    """Weights trained with InPlaceABN, whose norms multiply by |weight| + eps, for norms that multiply by weight.

    Wanted where a network of OCNet.pytorch or CCNet is loaded; no key shows that, so it must be asked for. It is done
    once: a second time adds eps again.

    Args:
        state: Under any names; a norm is a layer with a ``running_mean``.
        eps: That of the norms.

    >>> import torch
    >>> state = {"norm.weight": torch.tensor([-2.0]), "norm.running_mean": torch.zeros(1)}
    >>> from_inplace_abn(state, eps=0.5)["norm.weight"]
    tensor([2.5000])
    """
    norms = {key.removesuffix("running_mean") for key in state if key.endswith("running_mean")}
    scales = {f"{norm}weight" for norm in norms}
    return {key: value.abs() + eps if key in scales else value for key, value in state.items()}


def rename(state: Mapping[str, Tensor], author_keys: Mapping[str, str]) -> State:
    """Replace the authors' prefixes by ours.

    ``author_keys`` maps a regular expression, matched at the start of a key up to a dot or the key's end, to our
    prefix (``\\1`` stands for the first group); the longest match decides.

    >>> import torch
    >>> rename({"conv_out.bn.weight": torch.ones(8)}, {"conv_out": "project", r"conv_out\\.(bn|gn)": "norm"}).keys()
    dict_keys(['norm.weight'])
    """
    patterns = [(re.compile(rf"(?:{pattern})(?=\.|$)"), prefix) for pattern, prefix in author_keys.items()]

    def ours(key: str) -> str:
        found = [(match, prefix) for pattern, prefix in patterns if (match := pattern.match(key))]
        if not found:
            return key
        match, prefix = max(found, key=lambda f: f[0].end())
        return (match.expand(prefix) + key[match.end() :]).lstrip(".")

    return {ours(key): value for key, value in state.items()}


def convert(block: nn.Module, state: Mapping[str, Tensor]) -> State:
    """The authors' ``state`` under the names and in the shapes of ``block``.

    A value of the same numbers in another shape (a Linear for a 1x1 convolution, a 0-d scale for one of one element)
    is reshaped; what a block must do beyond that stands in its ``from_authors``, and names of one instance alone in its
    ``author_keys``.

    >>> from lookfar import create_block
    >>> block = create_block("squeeze_excitation", 32)
    >>> theirs = {"fc.0.weight": block.reduce.weight, "fc.2.weight": block.expand.weight}
    >>> list(convert(block, theirs))
    ['reduce.weight', 'expand.weight']
    """
    if set(state) == set(block.state_dict()):
        return dict(state)
    renamed = rename(state, getattr(block, "author_keys", None) or _author_keys(block))
    if hasattr(block, "from_authors"):
        renamed = block.from_authors(renamed)  # type: ignore[operator]
    own = block.state_dict()
    return {
        key: value.reshape(own[key].shape) if key in own and _same_but_ones(value, own[key]) else value
        for key, value in renamed.items()
    }


def _author_keys(module: nn.Module) -> Mapping[str, str]:
    try:
        return block_info(module).author_keys
    except ValueError:
        return {}  # somebody's module: its keys are its own


def _same_but_ones(a: Tensor, b: Tensor) -> bool:
    return [n for n in a.shape if n != 1] == [n for n in b.shape if n != 1]
