"""LatentGNN: latentgnn/LatentGNN-V1-PyTorch."""

from torch import nn

from lookfar import create_block
from translations import Case, translates


@translates("LatentGNNV1")
def latent_gnn(case: Case) -> nn.Module:
    a = case.args
    return create_block(
        "latent_gnn",
        a["in_channels"],
        nodes=a["latent_dims"],
        reduction=a.get("channel_stride", 4),
        symmetric=a.get("mode", "asymmetric") == "symmetric",
        graph_convolution=a.get("graph_conv_flag", False),
        residual=not a.get("without_residual", False),
    )
