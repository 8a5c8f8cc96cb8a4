"""HamNet: Gsunshine/Enjoy-Hamburger, and mmsegmentation's light head."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lookfar import create_block
from lookfar.blocks.hamburger import Ham
from translations import Built, Case, translates
from translations._mmcv import norm


class Alone(nn.Module):
    """A factorisation, multiplied out."""

    def __init__(self, ham: Ham, bases: Tensor | None) -> None:
        super().__init__()
        self.ham, self.start = ham, bases

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.ham(x, self.start)
        return (left @ right.transpose(2, 3)).reshape(x.shape)


class Started(nn.Module):
    """A block that is given its first bases."""

    def __init__(self, block: nn.Module, bases: list[Tensor]) -> None:
        super().__init__()
        self.block, self.start = block, tuple(bases)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, self.start or None)


def _ham_options(args: dict[str, Any], source: str) -> dict[str, Any]:
    a = {k.upper(): v for k, v in args.items()}
    # the original differentiates the last update; the ports differentiate every one
    full = any(port in source for port in ("mmseg", "seg_mm", "seg_light_ham"))
    return {
        "bases": a.get("MD_R", 64),
        "heads": a.get("MD_S", 1),
        "iterations": a.get("TRAIN_STEPS", 6),
        "eval_iterations": a.get("EVAL_STEPS", 7),
        "inverse_temperature": a.get("INV_T", 100),
        "ridge": a.get("BETA", 0.1),
        "momentum": a.get("ETA", 0.0 if full else 0.9),  # the ports keep their bases as they are
        "gradient": "full" if full else "one_step",
        "random_bases": "always" if a.get("RAND_INIT", True) else "never",
    }


def _bases(case: Case) -> list[Tensor]:
    return [bases for _, bases in sorted(case.group("bases").items())]


def _alone(case: Case, method: str) -> Built:
    args = case.args.get("ham_kwargs") or case.args.get("args") or case.args
    spatial = args.get("SPATIAL", args.get("spatial", True))
    (x,) = case.numbered("x")
    ham = Ham(x.shape[1], method=method, spatial=spatial, **_ham_options(args, case.source))  # type: ignore[arg-type]
    start = next(iter(_bases(case)), None)
    if ham.random_bases == "never":
        kept = case.state["bases"] if start is None else start[: ham.heads]
        ham.load_state_dict({"bases": kept, "seed": torch.tensor(0)})
        return Built(Alone(ham, None), ham, loaded=True, names={"bases": "bases"})
    return Built(Alone(ham, start))


for cls, method in (("NMF2D", "nmf"), ("CD2D", "cd"), ("VQ2D", "vq")):
    translates(cls)(partial(_alone, method=method))


def _burger(case: Case, variant: str) -> Built:
    a = case.args
    method = a.get("HAM_TYPE", "NMF").lower()
    heads = a.get("MD_S", 1)
    plus = variant == "v2plus"
    block = create_block(
        "hamburger",
        case.numbered("x")[0].shape[1],
        inner_channels=a.get("MD_D", 512) * (heads if plus else 1),
        method=method,
        variant=variant,
        dual=a.get("DUAL", True),
        spatial=a.get("SPATIAL", True) or (plus and a.get("DUAL", True)),
        squeeze=a.get("CHEESE_FACTOR", heads),
        norm_layer=partial(nn.BatchNorm2d, momentum=a.get("BN_MOM", 3e-4)),  # of the authors' settings
        **_ham_options(a, case.source),
    )
    return Built(Started(block, _bases(case)), block)


for cls, variant in (("HamburgerV1", "v1"), ("HamburgerV2", "v2"), ("HamburgerV2Plus", "v2plus")):
    translates(cls)(partial(_burger, variant=variant))


@translates("Hamburger")
def light(case: Case) -> Built:
    a = case.args
    ham = a.get("ham_kwargs") or {}
    options = _ham_options(ham, "mmseg") | {"spatial": ham.get("SPATIAL", True)}
    block = create_block("hamburger", a.get("ham_channels", 512), norm_layer=norm(a.get("norm_cfg")), **options)
    bases = _bases(case)
    if options["random_bases"] == "never" and bases:  # made in the original's first forward
        return Built(Started(block, []), block, state=case.state | {"ham.bases": bases[0][: options["heads"]]})
    return Built(Started(block, bases), block)
