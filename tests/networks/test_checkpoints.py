"""Published files: each of the four sources alone, a wrong one of each, what is refused, and logits at the end."""

import os
import sys
import types
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from translations import Case

from lookfar import create_network, from_checkpoint
from lookfar.networks import CGNet, Inference, Preprocessing, SegmentationNetwork
from lookfar.networks.checkpoints import recognise
from lookfar.networks.config_text import Unread, read_config
from lookfar.networks.mmsegmentation import arguments_of
from lookfar.networks.plans import HEADS
from lookfar.networks.zoo import network_of, said_by, table

SHARED = Path(os.environ.get("LOOKFAR_SHARED", Path(__file__).parents[2] / "../shared"))
HERE = Path(__file__).parents[1] / "goldens/segmentors"
MMSEG = [name for name, plan in HEADS.items() if any(keys.mark == "conv_seg." for keys in plan.keys)]
# names without a data set do not tell what surrounds the network
pytestmark = pytest.mark.filterwarnings("ignore:.*by default. within=None, tiles=None, reduce_zero_label=False$")
# settings of the thin vectors that no shape and no name tells
SAID = {"psanet": {"mask_size": (9, 7), "mode": "both"}}


def case_of(name: str) -> Case:
    found = [folder / f"{name}.npz" for folder in (HERE, SHARED / "goldens/segmentors")]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        pytest.skip(f"no {found[-1]}")
    return Case(path)


def as_text(value: Any) -> str:
    """As mmengine writes a configuration."""
    if isinstance(value, dict):
        return f"dict({', '.join(f'{key}={as_text(part)}' for key, part in value.items())})"
    if isinstance(value, list):
        return f"[{', '.join(map(as_text, value))}]"
    return repr(value)


def write(path: Path, case: Case, meta: dict[str, Any] | None = None, **changed: Any) -> Path:
    """The vector's weights as mmsegmentation saves them."""
    torch.save({"meta": meta or {}, "state_dict": {**case.state, **changed}, "optimizer": {"lr": 0.01}}, path)
    return path


PIPELINE = """test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(2048, 1024), keep_ratio=True)]
"""


def config_of(case: Case, **changed: Any) -> str:
    model = {**case.args, **changed}
    norm = "norm_cfg = dict(type='SyncBN', requires_grad=True)\n"
    size = "data_preprocessor = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True)\n"
    model.setdefault("test_cfg", {"mode": "whole"})
    return f"{norm}{size}{PIPELINE}crop_size = (512, 1024)\nlr = max(1, 2)\nmodel = {as_text(model)}\n"


def assert_is(network: Any, case: Case) -> None:
    x, y = case.numbered("x")[0], case.numbered("y")
    with torch.no_grad():
        logits = network.logits(x)
        resized = network(x)
    assert (logits - y[0]).abs().max() <= 1e-4 * y[0].abs().max()
    assert (resized - y[1]).abs().max() <= 1e-4 * y[1].abs().max()


@pytest.mark.parametrize("name", [*MMSEG, "fcn_r18"])
@pytest.mark.filterwarnings("ignore:.*assumed by default")
def test_shapes_alone(name: str, tmp_path: Path) -> None:
    case = case_of(name)
    path = write(tmp_path / "weights.pth", case)
    network = from_checkpoint(path, **SAID.get(name, {}))
    assert not network.training
    assert_is(network, case)
    assert {"output_stride", "align_corners"} <= network.recognised.assumed.keys()


def test_what_is_assumed_is_said_in_a_line(tmp_path: Path) -> None:
    case = case_of("danet")
    path = write(tmp_path / "weights.pth", case)
    said = "output_stride=8, align_corners=False, within=None, tiles=None, reduce_zero_label=False"
    line = rf"^weights\.pth does not say everything; assumed by default: {said}$"
    with pytest.warns(UserWarning, match=line):
        from_checkpoint(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = from_checkpoint(path, output_stride=16, align_corners=True, within=None, inference=Inference())
    assert "given: output_stride=16, align_corners=True, within=None" in str(network.recognised)
    assert network.align_corners


@pytest.mark.parametrize(("name", "key"), [("danet", "cfg"), *((name, "config") for name in [*MMSEG, "fcn_r18"])])
def test_the_configuration_inside(name: str, key: str, tmp_path: Path) -> None:
    case = case_of(name)
    path = write(tmp_path / "weights.pth", case, {key: config_of(case)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = from_checkpoint(path)
    assert_is(network, case)
    assert network.preprocessing == Preprocessing((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), within=(2048, 1024))
    assert not network.recognised.assumed


def test_the_configuration_says_what_no_shape_tells(tmp_path: Path) -> None:
    case = case_of("danet")
    args = case.args
    backbone = {**args["backbone"], "strides": [1, 2, 2, 1], "dilations": [1, 1, 1, 2], "multi_grid": [1, 2, 4]}
    head = {**args["decode_head"], "align_corners": True}
    text = config_of(case, backbone=backbone, decode_head=head)
    path = write(tmp_path / "danet_r50-d8_512x1024_80k.pth", case, {"config": text})
    with pytest.warns(UserWarning, match="configuration say .*=.*, file name .*: the first counts") as said:
        network = from_checkpoint(path)
    assert len(said) == 4  # stride, dilations of stages and of the last one, corners
    assert network.align_corners
    assert network.backbone.layer4[2].conv2.dilation == (4, 4)
    assert network.logits(torch.zeros(1, 3, 64, 64)).shape[2:] == (4, 4)


def test_a_training_file_of_mmengine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an object of a class that is not there when it is read."""
    case = case_of("danet")
    module = types.ModuleType("mmengine_history")
    module.HistoryBuffer = type("HistoryBuffer", (), {"__module__": "mmengine_history"})  # type: ignore[attr-defined]
    buffer = module.HistoryBuffer()  # type: ignore[attr-defined]
    buffer.counts = torch.ones(2)
    file = {
        "meta": {"iter": 80000, "cfg": config_of(case), "dataset_meta": {"classes": tuple("abcde")}},
        "state_dict": OrderedDict(case.state),
        "message_hub": {"log_scalars": OrderedDict(loss=buffer), "runtime_info": {"lr": 0.01}},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}},
    }
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mmengine_history", module)
        torch.save(file, tmp_path / "iter_80000.pth")
    network = from_checkpoint(tmp_path / "iter_80000.pth")
    assert_is(network, case)
    assert network.class_names == tuple("abcde")


def test_a_configuration_of_dilated_heads() -> None:
    """FCN-D6 dilates the auxiliary head as the other."""
    case = case_of("fcn_r18")
    heads = {part: {**case.args[part], "dilation": 6} for part in ("decode_head", "auxiliary_head")}
    assert arguments_of({**case.args, **heads})["dilation"] == 6
    with pytest.raises(ValueError, match="FCNHead with dilation=1 is not built here: 6 is"):
        arguments_of({**case.args, "decode_head": heads["decode_head"]})


def test_names_and_colours_of_classes() -> None:
    case = case_of("fcn_r18")
    names, colours = tuple("abcde"), tuple((n, n, n) for n in range(5))
    for meta in (
        {"CLASSES": list(names), "PALETTE": [list(c) for c in colours]},
        {"dataset_meta": {"classes": names, "palette": colours}},
    ):
        found = recognise({"state_dict": case.state, "meta": meta})
        assert (found.arguments["class_names"], found.arguments["palette"]) == (names, colours)
    assert "class_names" not in recognise({"state_dict": case.state, "meta": {"CLASSES": ["a"]}}).arguments


def test_the_files_name(tmp_path: Path) -> None:
    case = case_of("fcn_r18")
    path = write(tmp_path / "fcn_r18-d8_769x769_80k_cityscapes_20201225_021451-9739d1b8.pth", case)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = from_checkpoint(path)
    assert network.align_corners
    assert network.preprocessing == Preprocessing(within=(2049, 1025))
    assert network.inference == Inference((769, 769), (513, 513))
    path = write(tmp_path / "fcn_d6_r18-d16_512x512_mine.pth", case)
    with pytest.warns(UserWarning, match="by default: within=None, tiles=None, reduce_zero_label=False$"):
        network = from_checkpoint(path)
    assert not network.align_corners
    assert network.head.paths[0].before.conv.dilation == (6, 6)
    assert network.logits(torch.zeros(1, 3, 64, 64)).shape[2:] == (4, 4)


@pytest.mark.parametrize("name", ["ccnet_r18-d16_512x512.pth", "fcn_r50-d16_512x512.pth"])
def test_a_wrong_name_is_not_believed(name: str) -> None:
    case = case_of("fcn_r18")
    found = recognise({"state_dict": case.state}, name)
    assert found.arguments["output_stride"] == 8
    assert len(found.differs) == 1
    assert found.differs[0].endswith("its weights are fcn on ResNet-18: it is not believed")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"decode_head": {"type": "UPerHead"}}, "the head UPerHead is not built here"),
        ({"backbone": {"type": "HRNet"}}, "the backbone HRNet is not built here: ResNet and ResNetV1c are"),
        ({"decode_head": {"type": "CCHead", "channels": 16, "num_classes": 5}},
         "its configuration is of ccnet, its weights are of danet"),
        ({"decode_head": {"type": "DAHead", "channels": 16, "num_classes": 5, "pam_channels": 4, "twist": 3}},
         "DAHead with twist=3 is not built here"),
    ],
)  # fmt: skip
def test_a_configuration_of_something_else_is_refused(changed: dict[str, Any], message: str) -> None:
    case = case_of("danet")
    with pytest.raises(ValueError, match=message):
        recognise({"state_dict": case.state, "meta": {"config": config_of(case, **changed)}})


def test_a_configuration_is_never_run(tmp_path: Path) -> None:
    case = case_of("danet")
    mark = tmp_path / "ran"
    text = config_of(case) + f"import os\nos.mkdir({str(mark)!r})\n"
    assert recognise({"state_dict": case.state, "meta": {"config": text}}).arguments["name"] == "danet"
    inside = text.replace("depth=50", f"depth=os.mkdir({str(mark)!r})")
    with pytest.raises(ValueError, match=r"would have to be executed: model\.backbone\.depth=os\.mkdir\("):
        recognise({"state_dict": case.state, "meta": {"config": inside}})
    assert not mark.exists()
    with pytest.raises(ValueError, match="the configuration cannot be read"):
        recognise({"state_dict": case.state, "meta": {"config": "model = dict("}})
    with pytest.raises(ValueError, match="the configuration cannot be read"):
        recognise({"state_dict": case.state, "meta": {"config": "model = " + "[" * 5000 + "]" * 5000}})


def test_text_is_read() -> None:
    text = "a = 3\nb = dict(c=[1, -2.5, (3,)], d={'e.f': None}, **dict(g=a))\nh = dict(x=b, y=len('z'))\ni: int = 4"
    found = read_config(text)
    assert found["b"] == {"c": [1, -2.5, (3,)], "d": {"e.f": None}, "g": 3}
    assert found["h"]["x"] == found["b"]
    assert found["h"]["y"] == Unread("len('z')")


def test_every_name_of_the_table_is_understood() -> None:
    """All but the 21 on HRNets: head, depth, stride and corners as the table has them."""
    strides, ours = {}, 0
    for file, entry in table().items():
        said = said_by(file)
        assert said["align_corners"] == (entry.crop == (769, 769)) or "align_corners" not in said
        if entry.backbone.startswith("HRNet"):
            assert "output_stride" not in said
            continue
        head, depth = network_of(file) or ("", 0)
        kind, _, stride = entry.backbone.partition("-D")
        assert head in HEADS
        assert kind.removesuffix("b") == f"R-{depth}"
        assert said["output_stride"] == int(stride.removesuffix("-MG124"))
        assert (said["last_dilations"] == (1, 2, 4)) == stride.endswith("MG124")
        strides[said["output_stride"]] = strides.get(said["output_stride"], 0) + 1
        ours += 1
    assert ours == 279
    assert strides == {8: 262, 16: 14, 32: 3}


@pytest.mark.parametrize(
    ("kind", "stride", "rates", "grid"),
    [("R-50-D8", 8, (2, 4), None), ("R-50-D16", 16, (1, 2), None), ("R-50-D32", 32, (2, 4), None),
     ("R-101-D16-MG124", 16, (1, 2), (1, 2, 4))],
)  # fmt: skip
def test_strides_and_dilations_of_the_table(kind: str, stride: int, rates: Any, grid: Any) -> None:
    """mmsegmentation's D32 strides and dilates too."""
    file = next(file for file, entry in table().items() if entry.backbone == kind)
    said = said_by(file)
    assert (said["output_stride"], said["dilations_of_stages"], said["last_dilations"]) == (stride, rates, grid)


def test_other_numbers_of_classes(tmp_path: Path) -> None:
    case = case_of("danet")
    path = write(tmp_path / "danet_r50-d8_512x512.pth", case, {"CLASSES": list("abcde")})
    with pytest.raises(ValueError, match=r"has 5 classes, got num_classes=7: drop_classifier=True leaves"):
        from_checkpoint(path, num_classes=7)
    network, whole = from_checkpoint(path, num_classes=7, drop_classifier=True), from_checkpoint(path)
    assert isinstance(network, SegmentationNetwork)
    assert network(torch.zeros(1, 3, 33, 33)).shape[1] == 7
    for key, value in whole.state_dict().items():
        assert "classifier" in key or torch.equal(value, network.state_dict()[key])
    assert (network.class_names, whole.class_names) == ((), tuple("abcde"))
    assert [len(head.classifiers) for head in (network.head, network.auxiliary)] == [2, 0]


def test_wrappers_and_prefixes(tmp_path: Path) -> None:
    case = case_of("fcn_r18")
    path = tmp_path / "fcn_r18-d8_512x512.pth"
    torch.save({"model": {f"module.{key}": value for key, value in case.state.items()}}, path)
    assert_is(from_checkpoint(path.as_uri()), case)


def hrnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "backbone.transition1.0.0.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hrnet, "its backbone is an HRNet, which is not built here: ResNets are"),
        (lambda s: {k: v for k, v in s.items() if "layer3.1" not in k}, "backbone is not a ResNet that can be built"),
        (lambda s: {**s, "decode_head.c1_bottleneck.conv.weight": torch.zeros(1)}, r"its head is DeepLabV3\+, which"),
        (lambda s: {k: v for k, v in s.items() if "conv_cat" not in k}, "its head is none that is built here: it hol"),
        (lambda s: {k.replace("backbone", "encoder"): v for k, v in s.items()}, "backbone is not a ResNet"),
        (lambda s: {f"layer1.0.conv2.0.{n}": torch.zeros(4, 1, 1, 3, 1) for n in ("rel_h", "query_conv.weight")},
         "those of leaderj1001/Stand-Alone-Self-Attention, which compute something else"),
        (lambda s: {f"layer2.0.conv1.{n}": torch.zeros(4, 4, 1, 1) for n in ("qkv_conv.weight", "attn_out.weight")},
         "those of leaderj1001/Attention-Augmented-Conv2d, .* no place in aa_resnet50"),
        (lambda s: {"features.0.weight": torch.zeros(2, 3)}, "no network of ours has such names: features"),
        (lambda s: {k: v for k, v in s.items() if "layer2.1.bn1" not in k},
         r"the weights of fcn_r18-d8_512x512\.pth do not fit SegmentationNetwork: missing: backbone\.layer2\.1\.bn1"),
        (lambda s: {**s, "decode_head.convs.7.conv.weight": torch.zeros(1)}, r"no place for: head\.convs\.7\.conv"),
    ],
)  # fmt: skip
def test_what_is_none_of_ours_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "fcn_r18-d8_512x512.pth"
    torch.save({"state_dict": change(case_of("fcn_r18").state)}, path)
    with pytest.raises(ValueError, match=message) as raised:
        from_checkpoint(path)
    assert len(str(raised.value).splitlines()) <= 3
    with pytest.raises(FileNotFoundError, match="no weights at"):
        from_checkpoint(tmp_path / "nowhere.pth")


def test_defaults_of_theirs_and_ours_are_one() -> None:
    """A configuration that mentions nothing gives the network of the table."""
    backbone = {"type": "ResNetV1c", "depth": 50, "strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)}
    backbone["contract_dilation"] = True
    for cls, extra in (("PSPHead", {}), ("NLHead", {}), ("PSAHead", {"mask_size": (9, 9)}), ("CCHead", {})):
        head = {"type": cls, "in_channels": 2048, "in_index": 3, "channels": 512, "num_classes": 3, **extra}
        with torch.device("meta"):
            theirs = create_network(**arguments_of({"backbone": backbone, "decode_head": head}))
            ours = create_network(f"{HEADS_OF[cls]}_resnet50_d8", 3, auxiliary=False, **extra)
        assert str(theirs) == str(ours)


HEADS_OF = {"PSPHead": "pspnet", "NLHead": "nonlocal", "PSAHead": "psanet", "CCHead": "ccnet"}


def test_cgnet_by_its_keys() -> None:
    file = SHARED / "published/cgnet_camvid/model_800.pth"
    if not file.is_file():
        pytest.skip(f"no {file}")
    network = from_checkpoint(file)
    assert isinstance(network, CGNet)
    assert network.class_names[0] == "sky"
    assert network.preprocessing.mean == (105.65, 103.37, 99.66)
    x = torch.randn(1, 3, 33, 40)
    torch.testing.assert_close(network(x), F.interpolate(network.logits(x), (33, 40), mode="bilinear"))
