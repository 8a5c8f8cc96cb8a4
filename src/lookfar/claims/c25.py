"""Compact generalised non-local: what its published normalisation leaves of its attention."""

import torch
from torch import Tensor, nn

from lookfar.claims._claim import Claim, Outcome

CLAIM = Claim(
    says="The dot-product form of CGNL weighs its output by an attention that queries, keys and values learn.",
    source="Compact Generalized Non-local Network (1810.13125), the dot-product kernel with GroupNorm as released",
    refuted_by="an output that depends on the attention by no more than its sign, and gradients of rounding's size",
)


def run() -> Outcome:
    """The block of the authors' layout against x + sign(s) GN(z(t)), and the gradients of its projections."""
    difference, gradients = _difference(), [_gradients(norm) for norm in (None, nn.BatchNorm2d)]
    (query, key, value), with_batch = gradients
    cancelled = difference < 1e-4 and max(key, value) < 1e-4 * query
    return Outcome(
        "refuted" if cancelled else "confirmed",
        f"y = x + sign(s) GN(z(t)) to {difference:.0e}, s being the attention's one number a group, which GroupNorm "
        f"divides by its own size: gradients of query, key and value {query:.2g}, {key:.0e}, {value:.0e}. With "
        f"BatchNorm in its place they are {', '.join(f'{g:.2g}' for g in with_batch)}.",
    )


def _block(norm: type[nn.Module] | None) -> nn.Module:
    from lookfar.blocks import create_block

    block = create_block("compact_generalized_nonlocal", 32, groups=4, norm_layer=norm, zero_init=False)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    return block.train()


def _difference() -> float:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        block, x = _block(None), torch.randn(2, 32, 8, 8)
        t, p, g = (getattr(block, name)(x) for name in ("query", "key", "value"))
        s = (p * g).unflatten(1, (4, -1)).flatten(2).sum(-1)  # (B, groups)
        normed: Tensor = torch.nn.functional.group_norm(block.project(t), 4)  # pyright: ignore
        signs = s.sign().repeat_interleave(normed.shape[1] // 4, 1)[..., None, None]
        norm: nn.GroupNorm = block.norm  # pyright: ignore
        want = x + signs * normed * norm.weight[:, None, None] + norm.bias[:, None, None]
        return float((block(x) - want).abs().max())


def _gradients(norm: type[nn.Module] | None) -> list[float]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block, x = _block(norm), torch.randn(4, 32, 8, 8)
        (block(x) * torch.randn(4, 32, 8, 8)).sum().backward()
        return [float(getattr(block, name).weight.grad.norm()) for name in ("query", "key", "value")]
