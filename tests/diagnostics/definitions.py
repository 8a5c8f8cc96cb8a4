"""Golden vectors of numbers of maps: inputs, and ``s:NAME`` for each number, from loops over the formulae."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lookfar.diagnostics import Decomposition, rollout
from lookfar.diagnostics.geometry import Places
from lookfar.diagnostics.spread import jensen_shannon, ranks
from lookfar.diagnostics.sums import MapSums, cosines, directions, per_query


def vectors(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and wanted results of a golden."""
    with np.load(path) as z:
        arrays = {key: torch.from_numpy(z[key]) for key in z.files if key != "meta"}
    return {k: v for k, v in arrays.items() if k[:2] != "s:"}, {k[2:]: v for k, v in arrays.items() if k[:2] == "s:"}


def check(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    """All that is wanted is there, and equal."""
    assert want.keys() <= got.keys(), want.keys() - got.keys()
    for name, value in want.items():
        found = got[name]
        value = value.double().expand(found.shape) if value.dim() == 0 else value.double()  # one for all images
        torch.testing.assert_close(found, value, rtol=tolerance, atol=tolerance, msg=f"{name}: {found}, want {value}")


def check_definitions(path: Path) -> None:
    """Hold all numbers of maps to a golden."""
    given, want = vectors(path)
    maps = given["x"]
    if "rollout" in want:
        torch.testing.assert_close(rollout(list(maps)), want["rollout"], rtol=1e-12, atol=1e-12)
        return
    B, h, Q, N = maps.shape
    plain = torch.full((1, B, Q), 1 / Q, dtype=torch.float64)
    sums = MapSums(plain, given.get("v"))
    labels, size = given["labels"].long(), given["size"].tolist()
    places = Places(size, size, labels.expand(B, -1, -1))
    at = given.get("queries", torch.arange(Q)).long()
    for some in torch.arange(Q).split(3):
        sums.add(maps[:, :, some], some, places.per_query(maps[:, :, some], at[some]))
    got = {name: value[0] for name, value in sums.result().items()}
    got["mean_map"] = sums.mean_map[0]
    got["mutual_information_normalised"] = got["mutual_information"] / math.log(min(Q, N))
    got["jensen_shannon"] = jensen_shannon(maps, plain, plain.square().sum(-1))[0]
    got |= {name: value[0] for name, value in ranks(maps, plain).items()}
    if "q" in given:
        parts = Decomposition(given["q"].double(), given["k"].double(), float(given["scale"]))
        got |= {n: v[0] for n, v in parts.numbers(plain, sums.mean_map, got["entropy"][None]).items()}
        got |= {"pairwise_map": parts.pairwise_map(), "unary_map": parts.unary_map().squeeze(2)}
        got["logit_energy"] = got["logit_deviation"].square()
        features = given["features"].double().transpose(1, 2).unsqueeze(1)
        got["feature_cosine_distance"] = cosines(directions(plain, features))[1][0, :, 0]
        got["output_cosine_distance"] = got["output_cosine_distance"][:, 0]
    own = {**places.per_query(maps, at), **per_query(maps), "boundary": places.boundary[0]}
    exact = {"distance", "distance_rms", "distance_uniform", "self_weight", "label_mass", "label_chance", "max_weight"}
    exact |= {"entropy", "entropy_normalised", "effective_keys", "boundary_mass", "boundary"}
    void = labels.flatten()[at] == 255  # ours are nan there
    for name in exact:
        wanted, found = want.pop(name).double(), own[name]
        if name.startswith("label"):
            assert found[..., void].isnan().all()
            wanted, found = wanted[..., ~void], found[..., ~void]
        torch.testing.assert_close(found.expand(B, -1, -1) if found.dim() == 3 else found,
                                   wanted.expand(found.shape), rtol=1e-9, atol=1e-12, msg=name)  # fmt: skip
    want.pop("singular_values")  # the ranks are made of them
    check(got, want)
