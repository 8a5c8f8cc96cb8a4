"""Zero initialisation is said to let a block enter a pretrained network unnoticed."""

import torch

from lookfar.claims._claim import Claim, Outcome

CLAIM = Claim(
    says="With its last factor at zero, a block enters a network without any change of its output.",
    source="Non-local Neural Networks (1711.07971), section 4.1, zero initialisation of the last scale",
    refuted_by="one bit of the output that differs",
)
BLOCKS = ("nonlocal", "global_context", "criss_cross")


def run() -> Outcome:
    """Logits of a ResNet-18 of random weights, its norms' weights too, before and after each block enters layer3."""
    import timm

    from lookfar.insertion import insert

    changed, otherwise = [], []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for block in BLOCKS:
            for zero_init, found in ((True, changed), (False, otherwise)):
                torch.manual_seed(0)
                network = timm.create_model("resnet18", pretrained=False).eval()
                for parameter in network.parameters():
                    if parameter.dim() == 1:
                        parameter.uniform_(0.5, 1.0)
                x = torch.randn(2, 3, 64, 64)
                before = network(x)
                insert(network, block, at="layer3", example=x, zero_init=zero_init)
                found.append(float((network(x) - before).abs().max() / before.abs().max()))
    exact = all(one == 0 for one in changed)
    parts = (f"{name} {100 * one:.2g} %" for name, one in zip(BLOCKS, otherwise))
    return Outcome(
        "confirmed" if exact else "refuted",
        f"largest change of a logit: {max(changed):.1g} for {', '.join(BLOCKS)}; with zero_init=False "
        f"{', '.join(parts)} of the largest logit (ResNet-18 of random weights, after layer3).",
    )
