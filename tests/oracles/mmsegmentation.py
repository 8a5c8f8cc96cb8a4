"""mmsegmentation itself, as an oracle: its configurations built without a compiler, with weights that silence nothing.

Needs the environment of ``make oracles``.
"""

import copy
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lookfar.networks.plans import HEADS

NAMES = [name for name, plan in HEADS.items() if any(keys.mark == "conv_seg." for keys in plan.keys)]


def _laid(x: Tensor, out: Tensor, sizes: Mapping[str, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each position the part of its mask that lies on the map, and where it goes.

    x (B, h_mask w_mask, H, W); out (B, H W, H, W), where collect has the source and distribute the target last.
    """
    h, w, m, n = (sizes[key] for key in ("h_feature", "w_feature", "h_mask", "w_mask"))
    up, left = sizes["half_h_mask"], sizes["half_w_mask"]
    for i in range(h):
        for j in range(w):
            rows, columns = (max(0, up - i), min(m, h + up - i)), (max(0, left - j), min(n, w + left - j))
            mask = x[:, :, i, j].unflatten(1, (m, n))[:, slice(*rows), slice(*columns)]
            there = slice(rows[0] + i - up, rows[1] + i - up), slice(columns[0] + j - left, columns[1] + j - left)
            whole = out.unflatten(1, (h, w))
            yield mask, whole[(slice(None), *there, i, j) if sizes["psa_type"] == 0 else (slice(None), i, j, *there)]


def psamask_forward(x: Tensor, out: Tensor, **sizes: int) -> None:
    """mmcv's one compiled operator among these heads: the mask of each position laid over the map."""
    for mask, place in _laid(x, out, sizes):
        place.copy_(mask)


def psamask_backward(grad_out: Tensor, grad_x: Tensor, **sizes: int) -> None:
    for mask, place in _laid(grad_x, grad_out, sizes):
        mask.copy_(place)


class _Operators(types.ModuleType):
    """Stands for ``mmcv._ext``, whose operators are asked for at import: a name for each, and PSA's do something."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return {"psamask_forward": psamask_forward, "psamask_backward": psamask_backward}.get(name, name)


def import_mmseg() -> Any:
    """mmseg with its models registered; the test is skipped where it is not installed."""
    pytest.importorskip("mmengine", reason="mmsegmentation is in .venv-oracles alone: make test-oracles")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.modules.setdefault("mmcv._ext", _Operators("mmcv._ext"))
        import mmseg.models
        from mmengine.registry import init_default_scope

        init_default_scope("mmseg")
    return mmseg


def config_of(name: str, **changed: Any) -> Any:
    """mmsegmentation's own configuration of a head on ResNet-50, as mmengine reads it, on one machine.

    Args:
        name: Ours of the head.
        **changed: Of the decode head.
    """
    mmseg = import_mmseg()
    from mmengine import Config

    file = Path(mmseg.__file__).parent / f".mim/configs/_base_/models/{name}_r50-d8.py"
    config = Config.fromfile(str(file))
    config.test_pipeline = [  # of Cityscapes; a network's own file is of no data set
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (2048, 1024), "keep_ratio": True},
        {"type": "PackSegInputs"},
    ]
    model = config.model
    model.pretrained = None
    for part in (model.backbone, *_heads(model)):
        part.norm_cfg.type = "BN"
    heads_of(model)[-1].update(changed)
    if "align_corners" in changed:
        for head in _heads(model):
            head.align_corners = changed["align_corners"]
    return config


def heads_of(model: Any) -> list[Any]:
    """The decode heads of a configuration, that which predicts last."""
    return model.decode_head if isinstance(model.decode_head, list) else [model.decode_head]


def _heads(model: Any) -> list[Any]:
    return [*heads_of(model), *([model.auxiliary_head] if "auxiliary_head" in model else [])]


# of the head on a backbone of a sixteenth of the channels, beside ``channels``
_THIN = {
    "psanet": {"mask_size": (9, 7)},
    "danet": {"pam_channels": 8},
    "isanet": {"isa_channels": 8, "down_factor": (3, 2)},
    "ann": {"project_channels": 16},
    "emanet": {"ema_channels": 32, "num_bases": 6},
    "ocrnet": {"ocr_channels": 8},
}


def thin_config_of(name: str, **changed: Any) -> Any:
    """The same with a sixteenth of the channels and five classes."""
    config = config_of(name, **{**_THIN.get(name, {}), **changed})
    model = config.model
    model.backbone.update(base_channels=4, stem_channels=8)
    for head in _heads(model):
        wide = head.in_channels
        head.in_channels = [c // 16 for c in wide] if isinstance(wide, list) else wide // 16
        head.channels //= 16
        head.num_classes = 5
    return config


def build(config: Any) -> nn.Module:
    """The network of a configuration in eval, every parameter and statistic drawn, its logits about 10."""
    import_mmseg()
    from mmseg.registry import MODELS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = MODELS.build(copy.deepcopy(config.model)).eval()
    draw(network)
    image = torch.randn(1, 3, 65, 49)
    for name, conv in network.named_modules():
        if name.endswith("conv_seg"):
            conv.weight.data *= 10 / _largest(network, conv, image)
    return network


def _largest(network: nn.Module, layer: nn.Module, image: Tensor) -> float:
    """The largest value that a layer gives for an image."""
    seen: list[float] = []
    hook = layer.register_forward_hook(lambda _, __, y: seen.append(y.abs().max().item()))
    outputs(network, image)
    hook.remove()
    return seen[0]


def draw(network: nn.Module) -> None:
    """Weights that keep the size of what passes, norms that differ by channel, and no gate that is shut."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
    for name, parameter in network.named_parameters():
        if name.endswith(("gamma", "scale")):
            nn.init.constant_(parameter, 0.5)
    for name, module in network.named_modules():
        if name.startswith("backbone.layer") and name.endswith(".bn3"):
            nn.init.uniform_(module.weight, 0.2, 0.6)  # 33 residual branches add up
        elif name.endswith(("attention.1", "attention_p.1")):
            module.weight.data *= 0.2  # a softmax of PSA that is not one-hot


def outputs(network: Any, image: Tensor) -> list[Tensor]:
    """Logits as the heads give them: the main ones, DANet's others, then the auxiliary head's."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # on sizes that do not align
        return _outputs(network, image)


def _outputs(network: Any, image: Tensor) -> list[Tensor]:
    maps = network.extract_feat(image)
    if isinstance(network.decode_head, nn.ModuleList):
        guess = network.decode_head[0](maps)
        return [network.decode_head[1](maps, guess), guess]
    found = network.decode_head(maps)
    return [*(found if isinstance(found, tuple) else [found]), network.auxiliary_head(maps)]


def resized(network: Any, image: Tensor) -> Tensor:
    """Logits of the image's size, as its own inference has them."""
    meta = {"img_shape": tuple(image.shape[2:]), "pad_shape": tuple(image.shape[2:])}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return network.encode_decode(image, [meta] * len(image))


def gradients(network: Any, image: Tensor) -> dict[str, float]:
    """The largest gradient of the main logits by the name of each weight of the head that predicts."""
    several = isinstance(network.decode_head, nn.ModuleList)
    head = network.decode_head[1] if several else network.decode_head
    named = {name: p for name, p in head.named_parameters() if p.requires_grad and p.ndim > 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        total = sum(y.square().sum() for y in _outputs(network, image)[:-1])
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {name: 0.0 if grad is None else grad.abs().max().item() for name, grad in zip(named, found)}


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest logit."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
