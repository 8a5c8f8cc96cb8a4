"""The numbers of maps by their definitions: loops over pairs of queries, all rows at once, one image and head."""

import math

import torch
from torch import Tensor


def dense(a: Tensor, w: Tensor, v: Tensor) -> dict[str, float]:
    """Of maps ``(N, M)``, weights of queries ``(N,)`` that sum to 1, and values ``(M, E)``."""
    N, M = a.shape
    mean = sum(w[i] * a[i] for i in range(N))
    cosine = {(i, j): float(a[i] @ a[j] / (a[i].norm() * a[j].norm())) for i in range(N) for j in range(N)}
    pair = {(i, j): float(w[i] * w[j]) for i in range(N) for j in range(N)}
    apart = {ij: p for ij, p in pair.items() if ij[0] != ij[1]}
    entropy = [entropy_of(a[i]) for i in range(N)]
    shannon = {
        (i, j): entropy_of((a[i] + a[j]) / 2) - (entropy[i] + entropy[j]) / 2 for i in range(N) for j in range(N)
    }
    out, common = a @ v, mean @ v
    over = lambda numbers: float(sum(w[i] * numbers[i] for i in range(N)))  # noqa: E731
    s = torch.linalg.svdvals(w.sqrt()[:, None] * a)
    share, energy = s / s.sum(), s.square()
    return {
        "similarity": sum(p * cosine[ij] for ij, p in apart.items()) / sum(apart.values()),
        "cosine_distance": sum(p * (1 - cosine[ij]) / 2 for ij, p in pair.items()),
        "jensen_shannon": sum(p * shannon[ij] for ij, p in pair.items()),
        "mutual_information": over([float(torch.xlogy(a[i], a[i] / mean).sum()) for i in range(N)]),
        "shared_energy": float(mean.square().sum() / sum(w[i] * a[i].square().sum() for i in range(N))),
        "output_residual": math.sqrt(over((out - common).square().sum(1)) / over(out.square().sum(1))),
        "entropy": over(entropy),
        "entropy_normalised": over(entropy) / math.log(M),
        "effective_keys": over([math.exp(e) for e in entropy]),
        "max_weight": over([float(a[i].max()) for i in range(N)]),
        "effective_rank": math.exp(entropy_of(share)),
        "stable_rank": float(energy.sum() / energy[0]),
        "rank_90": min(r for r in range(1, len(s) + 1) if energy[:r].sum() >= 0.9 * energy.sum()),
    }


def dense_cosine_distance(rows: Tensor, w: Tensor) -> float:
    """GCNet's, between rows ``(N, C)``."""
    unit = rows / rows.norm(dim=1, keepdim=True)
    return float(sum(w[i] * w[j] * (1 - unit[i] @ unit[j]) / 2 for i in range(len(w)) for j in range(len(w))))


def dense_places(a: Tensor, w: Tensor, size: tuple[int, int], keys: tuple[int, int]) -> dict[str, float]:
    """Distances, where key (i, j) lies in the middle of its cell."""
    (H, W), (h, m) = size, keys
    middle = [((i + 0.5) * H / h - 0.5, (j + 0.5) * W / m - 0.5) for i in range(h) for j in range(m)]
    place = [(y, x) for y in range(H) for x in range(W)]
    d = torch.tensor([[math.dist(p, k) for k in middle] for p in place], dtype=torch.float64)
    return {
        "distance": float(sum(w[i] * (a[i] * d[i]).sum() for i in range(len(w)))),
        "distance_rms": float(sum(w[i] * (a[i] * d[i] ** 2).sum().sqrt() for i in range(len(w)))),
        "distance_uniform": float(sum(w[i] * d[i].mean() for i in range(len(w)))),
    }


def dense_labels(a: Tensor, w: Tensor, of_queries: list[int], grid: Tensor) -> dict[str, float]:
    """Weight on the query's class and on borders of classes, labels ``(h, w)`` of keys; 255 is void."""
    h, m = grid.shape
    of_keys = grid.flatten().tolist()
    border = []
    for y in range(h):
        for x in range(m):
            near = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            beside = [int(grid[p]) for p in near if 0 <= p[0] < h and 0 <= p[1] < m]
            border.append(grid[y, x] != 255 and any(n not in (255, int(grid[y, x])) for n in beside))
    valid = [i for i, label in enumerate(of_queries) if label != 255]
    total = sum(w[i] for i in valid)
    own = {i: torch.tensor([float(k == of_queries[i]) for k in of_keys]).double() for i in valid}
    mass = float(sum(w[i] * (a[i] @ own[i]) for i in valid) / total)
    chance = float(sum(w[i] * own[i].mean() for i in valid) / total)
    on_border = torch.tensor(border).double()
    boundary = float(sum(w[i] * (a[i] @ on_border) for i in range(len(w))))
    return {
        "label_mass": mass,
        "label_chance": chance,
        "label_lift": mass / chance,
        "boundary_mass": boundary,
        "boundary_chance": float(on_border.mean()),
        "boundary_lift": boundary / float(on_border.mean()),
    }


def dense_terms(q: Tensor, k: Tensor, w: Tensor, scale: float) -> dict[str, float]:
    """DNL's two terms from the logits themselves, ``(N, D), (M, D)``."""
    mean = sum(w[i] * q[i] for i in range(len(w)))
    logits = scale * q @ k.T
    unary = scale * k @ mean
    centred, u = logits - logits.mean(1, keepdim=True), unary - unary.mean()
    total = float(sum(w[i] * centred[i].square().mean() for i in range(len(w))))
    rest = float(sum(w[i] * (centred[i] - u).square().mean() for i in range(len(w))))
    of_unary, maps = unary.softmax(0), logits.softmax(1)
    return {
        "logit_deviation": math.sqrt(total),
        "pairwise_energy": rest,
        "unary_energy": float(u.square().mean()),
        "unary_share": float(u.square().mean()) / total,
        "kl_joint_unary": float(sum(w[i] * torch.xlogy(maps[i], maps[i] / of_unary).sum() for i in range(len(w)))),
    }


def entropy_of(p: Tensor) -> float:
    return -sum(x * math.log(x) for x in p.tolist() if x > 0)
