"""Learning from choices: the score-function (REINFORCE) gradient with a learned baseline."""

import torch.nn.functional as F
from torch import Tensor


def reinforce_loss(
    log_probability: Tensor,
    reward: Tensor,
    baseline: Tensor,
    *,
    weight: float = 1.0,
    entropy: Tensor | None = None,
    exploration: float = 0.05,
) -> Tensor:
    """Loss whose gradient moves a policy towards choices that were rewarded above expectation.

    -weight mean(log pi (R - b)) + mean((b - R)^2); reward and, in the first term, baseline are constants. Its gradient
    is an unbiased one of the expected reward, whatever the baseline, which only takes variance off. A policy that is
    sure too early never tries what it has not tried: -exploration mean(entropy) keeps it trying, and biases it.

    >>> import torch
    >>> log_probability, reward, baseline = torch.tensor([-1.0]), torch.tensor([3.0]), torch.tensor([1.0])
    >>> reinforce_loss(log_probability, reward, baseline).item()  # 1 * (3 - 1) + (1 - 3)^2
    6.0

    Args:
        log_probability: Of the choice that was made, ``(B,)``; summed over choices where there were several.
        reward: What came of it, ``(B,)``; no gradient flows to it.
        baseline: What was expected, ``(B,)``, learned by the second term.
        weight: Of the policy's term, next to a loss of other parts.
        entropy: Of the policy, ``(B,)``; without it there is no bonus.
        exploration: What a unit of entropy is worth, in rewards.

    Raises:
        ValueError: Shapes that differ.
    """
    if not log_probability.shape == reward.shape == baseline.shape:
        raise ValueError(f"want one number a choice, got {log_probability.shape=}, {reward.shape=}, {baseline.shape=}")
    reward = reward.detach().to(baseline.dtype)
    advantage = reward - baseline.detach()
    loss = F.mse_loss(baseline, reward) - weight * (log_probability * advantage).mean()
    if entropy is None:
        return loss
    if entropy.shape != reward.shape:
        raise ValueError(f"want one entropy a choice, got {entropy.shape=} for {reward.shape=}")
    return loss - exploration * entropy.mean()
