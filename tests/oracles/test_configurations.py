"""mmsegmentation's configurations as we read them, and what the names of its files say beside them."""

import csv
import warnings
from pathlib import Path
from typing import Any

import pytest
from oracles.mmsegmentation import NAMES, import_mmseg

import lookfar.networks
from lookfar.networks.config_text import read_config
from lookfar.networks.mmsegmentation import arguments_of
from lookfar.networks.plans import HEADS
from lookfar.networks.zoo import network_of, said_by

pytestmark = pytest.mark.oracle
TABLE = (Path(lookfar.networks.__file__).parent / "zoo.csv").read_text(encoding="utf-8")
# what a configuration leaves out
DEFAULTS = {"dilation": 1, "last_dilations": None}


def configuration(name: str) -> Any:
    from mmengine import Config

    folder = Path(import_mmseg().__file__).parent / ".mim/configs"
    (file,) = folder.glob(f"*/{name.replace('eemanet', 'emanet')}.py")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Config.fromfile(str(file))


def entries(name: str) -> list[dict[str, str]]:
    return [row for row in csv.DictReader(TABLE.splitlines()) if row["head"] in (name, *HEADS[name].aliases)]


@pytest.mark.parametrize("name", NAMES)
def test_text_reads_to_the_same_dictionary(name: str) -> None:
    """As a training writes it into its files."""
    import_mmseg()
    entry = next(entry for entry in entries(name) if entry["backbone"] == "R-101-D8")
    config = configuration(entry["config"])
    assert read_config(config.pretty_text)["model"] == config.model.to_dict()


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_say_what_their_configurations_say(name: str) -> None:
    """Every entry of the table: head, depth, and all that no shape tells."""
    import_mmseg()
    refused = 0
    for entry in entries(name):
        file, model = entry["checkpoint_file"], configuration(entry["config"]).model.to_dict()
        if entry["backbone"].startswith("HRNet"):
            with pytest.raises(ValueError, match="the backbone HRNet is not built here"):
                arguments_of(model)
            refused += 1
            continue
        found = DEFAULTS | arguments_of(model)
        head, depth = network_of(file) or ("", 0)
        assert (head, f"resnet{depth}") == (found["name"], found["backbone"].removesuffix("c"))
        if entry["backbone"].endswith("-D8"):  # the stem of others is told by shapes alone
            assert found["backbone"].endswith("c") != entry["backbone"].endswith("b-D8"), file
        assert {key: found[key] for key in said_by(file)} == said_by(file), file
    assert refused == (21 if name == "ocrnet" else 0)
