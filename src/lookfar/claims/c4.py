"""DNL holds its additive form against the multiplicative one of the plain non-local block; the gradients say."""

import torch
from torch import Tensor

from lookfar.claims._claim import Claim, Outcome
from lookfar.ops.attention import attention
from lookfar.ops.disentangled import multiplied_attention, unary_attention

CLAIM = Claim(
    says="Multiplied, a strong term starves the gradient of the other; added, the two learn apart.",
    source="Disentangled Non-Local Neural Networks (2006.06668), section 3.1, on the gradients of the two terms",
    refuted_by="a multiplied query's gradient that does not fall, or an added one that does, as unary logits grow",
)
SPREADS = (0, 2, 5, 10, 20)  # standard deviations of the other term's logits
OWN = (1, 4)  # and of a term's own
DRAWS = 64


def run() -> Outcome:
    """Norm of the gradient of one term's inputs while the logits of the other grow, at random weights."""
    falls, words, stays = [], [], True
    for name, at in (("query", 0), ("unary", 1)):
        for own in OWN:
            spreads = [(own, other) if at == 0 else (other, own) for other in SPREADS]
            multiplied, added = ([_gradients(together, *two)[at] for two in spreads] for together in (True, False))
            stays &= max(added) - min(added) < 1e-9 * added[0]
            falls.append(multiplied[-1] < 0.9 * multiplied[0])
            found = ", ".join(f"{g:.3g}" for g in multiplied)
            words.append(f"{name}, own logits of deviation {own}: {found}; added {added[0]:.3g} throughout")
    word = "confirmed" if all(falls) and stays else "open" if any(falls) and stays else "refuted"
    return Outcome(
        word,
        f"gradients while the other term's logits have deviation {', '.join(map(str, SPREADS))}. {'. '.join(words)}. "
        f"Added, the other term does not matter {'at all' if stays else 'little'}. Multiplied, the last is below the "
        f"first in {sum(falls)} of {len(falls)}: a term near uniform gains from a sharper one before it loses. What "
        "happens in training is another question.",
    )


def _gradients(together: bool, pairwise: float, unary: float) -> tuple[float, float]:
    """Norms of the gradients of queries and of unary logits, of a random linear function of the output."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = (draw(DRAWS, 1, 64, 16) for _ in range(3))
    logits, weight = (unary * draw(DRAWS, 1, 64)).requires_grad_(), draw(DRAWS, 1, 64, 16)
    q = (pairwise * q).requires_grad_()
    if together:
        y = multiplied_attention(q, k, logits, v, scale=0.25)
    else:
        y = attention(q, k, v, scale=0.25) + unary_attention(logits, v)
    (weight * y).sum().backward()
    assert q.grad is not None
    assert logits.grad is not None
    return float(q.grad.norm()), float(logits.grad.norm())
