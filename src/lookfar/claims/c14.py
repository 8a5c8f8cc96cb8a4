"""Stand-alone attention is said to be cheaper than a convolution as its window grows."""

from torch import nn

from lookfar.claims._claim import Claim, Outcome

CLAIM = Claim(
    says="Parameters of local attention do not grow with its extent k, and its FLOPs grow slower than a convolution's.",
    source="Stand-Alone Self-Attention in Vision Models (1906.05909), section 3.1",
    refuted_by="more parameters, or FLOPs that grow as fast, from k = 3 to k = 11",
)
EXTENTS = (3, 7, 11)
CHANNELS, SIZE = 64, (16, 16)


def run() -> Outcome:
    """Counts of the layer and of a convolution of the same width."""
    from lookfar.blocks import create_block
    from lookfar.cost import measure_cost

    layers = [create_block("stand_alone", CHANNELS, kernel_size=k) for k in EXTENTS]
    convolutions = [nn.Conv2d(CHANNELS, CHANNELS, k, padding=k // 2) for k in EXTENTS]
    whole = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    places = [sum(p.numel() for n, p in layer.named_parameters() if n.startswith("rel_")) for layer in layers]
    rest = [a - b for a, b in zip(whole, places)]
    own, theirs = (
        [measure_cost(layer, CHANNELS, SIZE, repeats=1).flops for layer in kind] for kind in (layers, convolutions)
    )
    slower = own[-1] / own[0] < theirs[-1] / theirs[0]
    grows = whole[-1] > whole[0]
    extents = ", ".join(map(str, EXTENTS))
    return Outcome(
        "confirmed" if slower and not grows else "refuted",
        f"k = {extents} at {CHANNELS} channels: parameters {', '.join(map(str, whole))} (without the embeddings of "
        f"relative positions {', '.join(map(str, rest))}: it is these that grow, linearly), a convolution's "
        f"{', '.join(str(sum(p.numel() for p in c.parameters())) for c in convolutions)}; FLOPs grow by a factor of "
        f"{own[-1] / own[0]:.1f} against {theirs[-1] / theirs[0]:.1f}.",
    )
