"""Whole networks from where people take them: transformers, segmentation-models-pytorch, torchvision."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from insertion.hosts import wake
from samples import randomise
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import lookfar
from lookfar import describe, insert
from lookfar.insertion import insertions, verify

NEEDS = "needs `pip install lookfar[hosts]`"
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
PICTURES = [torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(n)) for n in range(2)]
CLIP = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(3))


def hf_resnet() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic")
    return transformers.ResNetForImageClassification(config)


def hf_vit() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=64, patch_size=16))


def smp(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        models = pytest.importorskip("segmentation_models_pytorch", reason=NEEDS)
        return getattr(models, name)("resnet18", encoder_weights=None, classes=3)

    return make


def detector(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision.models import detection

        backbone = detection.backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None)
        few = {"rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 10, "box_detections_per_img": 3}
        return getattr(detection, name)(backbone, num_classes=3, min_size=64, max_size=80, **few)

    return make


def deeplab() -> nn.Module:
    segmentation = torchvision.models.segmentation
    return segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)


HOSTS: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, str]]] = {
    # how to make it, an input, at -> name of the block's module
    "hf resnet": (hf_resnet, X, {"encoder.stages.1": "resnet.encoder.stages.1"}),
    "hf vit": (hf_vit, {"pixel_values": X}, {"layers.1": "layers.1"}),
    "smp Unet": (smp("Unet"), X, {"encoder.layer3": "encoder.layer3.1", "decoder.blocks.0": "decoder.blocks.0"}),
    "smp DeepLabV3Plus": (smp("DeepLabV3Plus"), X, {"encoder.layer3": "encoder.layer3.1"}),
    "FasterRCNN": (detector("FasterRCNN"), PICTURES, {"backbone.body.layer3": "backbone.body.layer3.1"}),
    "MaskRCNN": (detector("MaskRCNN"), PICTURES, {"layer3": "backbone.body.layer3.1"}),
    "KeypointRCNN": (detector("KeypointRCNN"), PICTURES, {"keypoint_head.7": "roi_heads"}),
    "deeplab": (deeplab, X, {"backbone.12": "backbone.12"}),
    "r3d_18": (lambda: torchvision.models.video.r3d_18(num_classes=3), CLIP, {"layer3": "layer3.1"}),
}


def forward(net: nn.Module, x: Any) -> list[Tensor]:
    with torch.no_grad():
        y = net.eval()(**x) if isinstance(x, dict) else net.eval()(x)
    return [leaf for leaf in tree_leaves(y) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", HOSTS)
def test_host(name: str, tmp_path) -> None:
    make, x, places = HOSTS[name]
    torch.manual_seed(0)
    net = make()
    if "RCNN" not in name:  # its heads find nothing, or too much, with random norms
        randomise(net)
    bare = copy.deepcopy(net)
    want = forward(net, x)
    runs = []
    handle = net.register_forward_pre_hook(lambda *_: runs.append(1))
    inserted = insert(net, "nonlocal", list(places), example=x)
    handle.remove()
    assert inserted == [f"{where}.non_local" for where in places.values()]
    assert len(runs) <= 3, "a detector takes many seconds"
    assert all(map(torch.equal, forward(net, x), want))
    wake(net)
    assert verify(net, x) == {}
    got = forward(net, x)
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(got, want))
    assert all(where in describe(net, example=x) for where in places)

    loaded = lookfar.load(bare, lookfar.save(net, tmp_path / "net.safetensors"))
    assert all(map(torch.equal, forward(loaded, x), got))


def test_a_head_over_a_pyramid_is_shared() -> None:
    net = detector("FasterRCNN")()
    with pytest.raises(ValueError, match=r"called \d times in a forward pass, want once. Insert into the part that"):
        insert(net, "nonlocal", "rpn.head.conv", example=PICTURES)
    insert(net, "nonlocal", "rpn.head.conv", example=PICTURES, shared=True)
    assert verify(net, PICTURES) == {}
    assert insertions(net)[0].record.shared


def test_pretrained_hugging_face_folder(tmp_path) -> None:
    net = hf_resnet()
    insert(net, "nonlocal", "encoder.stages.1", example=X)
    wake(net)
    net.save_pretrained(tmp_path)
    lookfar.save(net, tmp_path / "blocks.safetensors")
    fresh = type(net)(net.config_class.from_pretrained(tmp_path))
    assert all(map(torch.equal, forward(lookfar.load(fresh, tmp_path / "blocks.safetensors"), X), forward(net, X)))
