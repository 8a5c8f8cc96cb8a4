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
    estimates that of the expected reward without bias, whatever the baseline, which only reduces the variance. A policy
    that is certain too early stops exploring; -exploration mean(entropy) prevents that, at the price of a bias.

    >>> import torch
    >>> log_probability, reward, baseline = torch.tensor([-1.0]), torch.tensor([3.0]), torch.tensor([1.0])
    >>> reinforce_loss(log_probability, reward, baseline).item()  # 1 * (3 - 1) + (1 - 3)^2
    6.0

    Args:
        log_probability: Log-probability of the choice made, ``(B,)``; summed over choices where there were several.
        reward: Reward of that choice, ``(B,)``; no gradient flows to it.
        baseline: Expected reward, ``(B,)``, learned by the second term.
        weight: Factor on the policy's term, to balance it with other losses.
        entropy: Entropy of the policy, ``(B,)``; without it there is no bonus.
        exploration: Value of a unit of entropy, in rewards.

    Raises:
        ValueError: Shapes that differ.
    """
    if not log_probability.shape == reward.shape == baseline.shape:
        raise ValueError(
            f"want one number per choice, got {log_probability.shape=}, {reward.shape=}, {baseline.shape=}"
        )
    reward = reward.detach().to(baseline.dtype)
    advantage = reward - baseline.detach()
    loss = F.mse_loss(baseline, reward) - weight * (log_probability * advantage).mean()
    if entropy is None:
        return loss
    if entropy.shape != reward.shape:
        raise ValueError(f"want one entropy per choice, got {entropy.shape=} for {reward.shape=}")
    return loss - exploration * entropy.mean()
