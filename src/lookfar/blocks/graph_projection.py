"""Beyond Grids: soft clusters of positions become the nodes of a graph, one convolution runs over it, they go back.

Traps: the assignment is a softmax over the nodes at each position, not over positions; squared distances grow with C
and pass the range of half precision; a node that nobody joins still has a direction, and counts in the others' mixture.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar.blocks._base import block
from lookfar.blocks._layers import Dims, Form, Placement, projected, projection
from lookfar.ops._precision import exp, softmax, widened, without_autocast


class GraphUnit(nn.Module):
    """One projection onto V nodes, graph convolution and re-projection: ``(B, C, N) -> (B, O, N)``."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        nodes: int,
        *,
        scale: bool = False,
        reasoning: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        self.reasoning, self.sharpness = reasoning, 1 / channels if scale else 1.0
        self.centres = nn.Parameter(torch.randn(channels, nodes, **dd))
        self.scales = nn.Parameter(torch.zeros(channels, nodes, **dd))  # sigmoid of it is sigma
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(channels, out_channels, **dd)))

    def forward(self, x: Tensor) -> Tensor:
        log_q, shifted, centres, inverse = self.assign(x)
        q = exp(log_q)
        # q_nv / sum_n q_nv as a softmax: a node that is far from every position keeps its direction
        z = (shifted @ softmax(log_q).transpose(1, 2) - centres) * inverse  # (B, C, V)
        z = F.normalize(z, dim=1, eps=1e-12)
        nodes = self.weight.to(z.dtype).T @ z  # (B, O, V)
        if self.reasoning:
            nodes = nodes @ (z.transpose(1, 2) @ z)
        return nodes.relu() @ q

    def assign(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logarithms of the assignments (B, V, N), and x and the centres about a common origin, and 1/sigma.

        |x - w|^2 / sigma^2 is expanded into products with the N positions; the origin saves digits.
        """
        inverse = 1 / self.scales.to(x.dtype).sigmoid()
        centres = self.centres.to(x.dtype)
        origin = centres.mean(1, keepdim=True)
        x, centres = x - origin, centres - origin
        precision = inverse.square()
        distance = precision.T @ x.square() - 2 * (centres * precision).T @ x
        distance = distance + (centres.square() * precision).sum(0)[:, None]
        return (-self.sharpness / 2 * distance).log_softmax(1), x, centres, inverse


@block(
    "graph_projection",
    title="Graph projection (Beyond Grids)",
    paper="Beyond Grids: Learning Graph Representations for Visual Recognition (NeurIPS 2018)",
    formula=(
        r"q_{nv} = \text{softmax}_v\left(-\frac{1}{2} \left\| \frac{x_n - w_v}{\sigma_v} \right\|^2\right),"
        r" \quad Z_v = \text{unit}\left(\frac{\sum_n q_{nv}\,(x_n - w_v) / \sigma_v}{\sum_n q_{nv}}\right)",
        r"y = x + P\,(q\,\text{ReLU}(Z Z^\top Z G))",
    ),
    family="graph",
    complexity="N K C",
    memory="N (C + K)",
    verified=("equations, float64 loop (the authors published no code)",),
    attends="maps",
    aliases=("beyond_grids", "gcu"),
    differences=(
        "The paper concatenates the units' outputs to x; here they are added through a 1x1 convolution that starts at"
        ' zero. form="published" gives the units alone.',
        "Squared distances are sums over the channels, and in wide maps a position belongs to one node: at 2048 random "
        "channels the largest of 32 assignments is above 0.8 on average. scale=True takes means, and it is below 0.1.",
        "Centres start from a normal distribution; the paper clusters features of the pretrained network.",
    ),
    author_keys={"anchor": "units.0.centres", "sigma": "units.0.scales", "weight": "units.0.weight"},
)
class GraphProjection(nn.Module):
    """Clusters the positions softly into K nodes, convolves the graph of the nodes' similarities, projects it back.

    q = softmax_v(-|(x - w_v) / sigma_v|^2 / 2); Z = the nodes' unit residuals; y = x + P(q ReLU(Z Z^T Z G))

    Args:
        nodes: K of each unit; units of several sizes work side by side.
        inner_channels: Channels O of a unit's output; at most 256 by default.
        scale: Divide the squared distances by C, which keeps the assignments soft in wide maps.
        reasoning: The graph convolution; off, every node keeps to itself.
        form: ``"block"`` keeps the shape; ``"published"`` gives the units' outputs ``(B, units * O, H, W)``.

    Shape: ``(B, C, *S) -> (B, C, *S)``, one, two or three axes by ``dims``

    Example:
        >>> block = GraphProjection(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        nodes: int | Sequence[int] = (2, 4, 8, 32),
        inner_channels: int | None = None,
        scale: bool = False,
        reasoning: bool = True,
        form: Form = "block",
        dims: Dims = 2,
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        nodes = (nodes,) if isinstance(nodes, int) else tuple(nodes)
        inner = inner_channels or min(channels, 256)
        self.units = nn.ModuleList(GraphUnit(channels, inner, n, scale=scale, reasoning=reasoning, **dd) for n in nodes)
        self.project = projection(form, inner * len(nodes), channels, zero_init=zero_init, dims=dims, **dd)

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            tokens = widened(x.flatten(2))
            y = torch.cat([unit(tokens) for unit in self.units], 1).unflatten(2, x.shape[2:])
        y = y.to(x.dtype)
        return projected(self, x, y)

    def maps(self, x: Tensor) -> Tensor:
        """Assignments ``(B, K, N)`` of the positions to the nodes of all units, one unit after the other."""
        with without_autocast(x):
            tokens = widened(x.flatten(2))
            return torch.cat([unit.assign(tokens)[0].exp() for unit in self.units], 1)  # type: ignore[operator]
