"""DNL derives its whitening from an optimum; a closed form of the objective says whether it is one."""

import torch
from torch import Tensor

from lookfar.claims._claim import Claim, Outcome

CLAIM = Claim(
    says="The means of queries and keys maximise the objective of query and key differences.",
    source="Disentangled Non-Local Neural Networks (2006.06668), section 3.2, the objective over alpha and beta",
    refuted_by="an alpha at which the first ratio is larger than at the mean query",
)
# With alpha taken off the queries and any beta off the keys, the first ratio is
#   sum_imn ((q_i - alpha).(k_m - k_n))^2 / (sum_i |q_i - alpha|^2 sum_mn |k_m - k_n|^2):
# beta drops out. With d = alpha - mean q, C the covariance of queries and S that of keys it is
#   (tr(S C) + d'S d) / ((tr C + d'd) tr S)
DRAWS = 20


def run() -> Outcome:
    """Random queries and keys of unequal spread, in float64: the ratio by its sums, at the means and far from them."""
    generator = torch.Generator().manual_seed(0)
    at_means, far, curvatures, error, short, centred = [], [], [], 0.0, 0.0, True
    for _ in range(DRAWS):
        q, k = (torch.randn(24, 6, generator=generator, dtype=torch.float64) for _ in range(2))
        k = k * torch.tensor([2.5, 1.2, 0.8, 0.6, 0.4, 0.3], dtype=torch.float64)
        S, C = (torch.cov(t.T, correction=0) for t in (k, q))
        values, vectors = torch.linalg.eigh(S)
        for alpha in (q.mean(0), torch.randn(6, generator=generator, dtype=torch.float64)):
            error = max(error, abs(float(ratio(q, k, alpha) - closed(S, C, alpha - q.mean(0)))))
        at_means.append(float(ratio(q, k, q.mean(0))))
        far.append(float(ratio(q, k, q.mean(0) + 1e4 * vectors[:, -1])))
        bend = 2 * (S - torch.trace(S @ C) / torch.trace(C) * torch.eye(6)) / (torch.trace(C) * torch.trace(S))
        curvatures.append(torch.linalg.eigvalsh(bend))
        short = max(short, abs(far[-1] - float(values[-1] / values.sum())))
        step = 0.1 * torch.randn(6, generator=generator, dtype=torch.float64)
        centred &= bool(pairwise_energy(q, k, q.mean(0)) <= pairwise_energy(q, k, q.mean(0) + step))
    mixed = all(bool((bend[0] < 0) & (bend[-1] > 0)) for bend in curvatures)
    refuted = all(away > here for here, away in zip(at_means, far)) and mixed
    return Outcome(
        "refuted" if refuted else "confirmed",
        f"at the means {min(at_means):.2f} to {max(at_means):.2f}, far along the keys' first axis {min(far):.2f} to "
        f"{max(far):.2f}, its supremum (the largest eigenvalue of the keys' covariance over its trace) to {short:.0e}; "
        f"beta drops out, and the means are a saddle: curvatures of both signs {'always' if mixed else 'not always'} "
        f"in {DRAWS} draws; closed form and sums agree to {error:.0e}. The means {'do' if centred else 'do not'} "
        "minimise the energy of the pairwise term.",
    )


def ratio(q: Tensor, k: Tensor, alpha: Tensor) -> Tensor:
    """The objective's first ratio by its sums."""
    off, differences = q - alpha, (k[:, None] - k).flatten(0, 1)
    return (off @ differences.T).square().sum() / (off.square().sum() * differences.square().sum())


def closed(S: Tensor, C: Tensor, d: Tensor) -> Tensor:
    """The same in closed form."""
    return (torch.trace(S @ C) + d @ S @ d) / ((torch.trace(C) + d @ d) * torch.trace(S))


def pairwise_energy(q: Tensor, k: Tensor, alpha: Tensor) -> Tensor:
    """Mean square of what is left of the logits less alpha's part, each row centred."""
    logits = (q - alpha) @ k.T
    return (logits - logits.mean(1, keepdim=True)).square().mean()
