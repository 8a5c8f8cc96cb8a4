"""EMANet: the authors' unit (XiaLiPKU/EMANet), the EM part alone of mmsegmentation."""

import torch
from torch import Tensor

from lookfar import create_block
from translations import Built, Case, translates


@translates("EMAU")
def unit(case: Case) -> Built:
    kept = {**case.meta, **case.args}.get("momentum_kept", 0.9)
    block = create_block(
        "expectation_maximization",
        case.args["c"],
        bases=case.args["k"],
        iterations=case.args.get("stage_num", 3),
        momentum=1 - kept,
    )

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        """The original gives the fitted bases beside the map; its training script moves the bases afterwards."""
        mixed, fitted = block.reconstruct(x)
        if block.training:
            block.update_bases(fitted)
        if "mu_out" in case.arrays:
            torch.testing.assert_close(
                fitted[:, 0], torch.from_numpy(case.arrays["mu_out"]).to(fitted), rtol=1e-4, atol=1e-5
            )
        return block.finish(x, mixed), fitted[:, 0]

    return Built(run, block)


@translates("EMAModule")
def em_alone(case: Case) -> Built:
    """Our block merges a convolution into EM: here it is the identity."""
    args = case.args
    block = create_block(
        "expectation_maximization",
        args["channels"],
        bases=args["num_bases"],
        iterations=args["num_stages"],
        momentum=args.get("momentum", 0.1),
        variant="mmseg",
    )
    with torch.no_grad():
        block.embed.weight.copy_(torch.eye(args["channels"])[:, :, None, None])
        block.embed.bias.zero_()
        block.bases.copy_(case.state["bases"])

    def run(x: Tensor) -> Tensor:
        mixed, fitted = block.reconstruct(x)
        if block.training:
            block.update_bases(fitted)
        return mixed[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])

    return Built(run, block, loaded=True, names={"bases": "bases"})
