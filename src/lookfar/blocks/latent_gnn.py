"""LatentGNN: positions and a few latent nodes form a bipartite graph; attention runs among the nodes.

Traps: the bipartite weights are l2-normalised, over positions one way and over nodes the other (over nodes both ways in
the symmetric form); a node or position that nobody wants is an exact zero, whose norm must not be divided by.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import ConvNorm, Dims, Placement, added, gate, gated
from lookfar.ops._layout import match_format
from lookfar.ops._precision import widened, without_autocast
from lookfar.ops._rectified import rectified


@block(
    "latent_gnn",
    title="Latent graph (LatentGNN)",
    paper="LatentGNN: Learning Efficient Non-local Relations for Visual Recognition (ICML 2019)",
    arxiv="1905.11634",
    formula=(
        r"L = A u^\top, \quad S = \text{softmax}(\cos(L, L)), \quad O = (S L)^\top E",
        r"y = x + \gamma\,\text{project}([\,O_1, \ldots, O_{\text{kernels}}\,])",
    ),
    family="graph",
    complexity="N C (C + K) / r",
    memory="N (C / r + K)",
    verified=("latentgnn/LatentGNN-V1-PyTorch@5cf58ff:lib/latentgnn_v1.py",),
    attends="maps",
    aliases=("latentgnn",),
    differences=(
        "What the nodes gather grows with N, and the last norm's running statistics fit one input size: on an image "
        "with sides twice as long the update is twice as large, four times in the symmetric form. normalize=True keeps "
        "its size.",
        "The paper sums its kernels; the authors' code, reproduced here, concatenates them before a 1x1 convolution.",
    ),
    author_keys={
        r"down_channel(_v2l)?\.0": "value.conv",
        r"down_channel(_v2l)?\.1": "value.norm",
        r"down_channel_l2v\.0": "back.conv",
        r"down_channel_l2v\.1": "back.norm",
        r"up_channel\.0": "project.conv",
        r"up_channel\.1": "project.norm",
    },
)
class LatentGNN(nn.Module):
    """Sends what positions hold to K latent nodes, lets the nodes attend to each other, and sends it back.

    L = A u^T; S = softmax(cos(L, L)); O = (S L)^T E; y = x + gamma project([O_1 .. O_kernels])

    A and E, normalised, say what goes into the nodes and back, u are the features. With heads each has its share of the
    nodes and of the channels of u, and everything is normalised and attends within a head.

    Args:
        nodes: Latent nodes of each kernel, of all heads together; as many kernels as numbers.
        heads: Graphs side by side, each with its share of the nodes and channels; the authors have one.
        reduction: r; the graph works on ``channels // reduction`` channels.
        symmetric: One map of features and one of weights serve both directions.
        graph_convolution: A 1x1 convolution with norm and ReLU on what comes back of each kernel.
        normalize: Divide what the nodes gather by sqrt(N), or N in the symmetric form; wanted wherever the input size
            is not fixed.
        reasoning: The attention among the nodes; off, the nodes send back what they gathered.
        norm_layer: After every convolution.
        zero_init: Start as the identity (gamma 0), as the authors do; else gamma starts at 1.

    Shape: ``(B, C, *S) -> (B, C, *S)``, one, two or three axes by ``dims``

    Raises:
        ValueError: Heads that do not divide the nodes of every kernel and the channels of the graph.

    Example:
        >>> block = LatentGNN(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        nodes: int | Sequence[int] = 100,
        heads: int = 1,
        reduction: int = 4,
        symmetric: bool = False,
        graph_convolution: bool = False,
        normalize: bool = False,
        reasoning: bool = True,
        dims: Dims = 2,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        nodes = (nodes,) if isinstance(nodes, int) else tuple(nodes)
        inner = max(channels // reduction, 1)
        divides("heads", heads, graph_channels=inner, **{f"nodes[{n}]": d for n, d in enumerate(nodes)})
        self.heads, self.normalize, self.reasoning, self.symmetric = heads, normalize, reasoning, symmetric

        def layer(before: int, after: int) -> ConvNorm:
            return ConvNorm(before, after, bias=False, norm_layer=norm_layer, dims=dims, **dd)

        self.value = layer(channels, inner)
        self.back = None if symmetric else layer(channels, inner)
        self.to_nodes = nn.ModuleList(layer(inner, d) for d in nodes)
        self.to_positions = nn.ModuleList() if symmetric else nn.ModuleList(layer(inner, d) for d in nodes)
        convolve = [layer(inner, inner) for _ in nodes if graph_convolution]
        for m in convolve:
            nn.init.normal_(m.conv.weight, std=0.01)
        self.convolve = nn.ModuleList(convolve)
        self.project = layer(inner * len(nodes), channels)
        self.gamma = gate(self, zero_init, **dd)

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Kernels are numbered attributes in the original; gamma stands there even where it is not used."""
        lists = {"psi_v2l": "to_nodes", "psi": "to_nodes", "psi_l2v": "to_positions", "GraphConvWeight": "convolve"}
        names = {"0": "conv", "1": "norm"}
        done = {}
        for key, value in state.items():
            if key.startswith("LatentGNN_Kernel_"):
                kernel, part, layer, *rest = key.removeprefix("LatentGNN_Kernel_").split(".")
                key = ".".join([lists[part], kernel, names[layer], *rest])
            if key != "gamma" or self.gamma is not None:
                done[key] = value
        return done

    def forward(self, x: Tensor) -> Tensor:
        u, sides = self._sides(x)
        parts = []
        for n, (a, e) in enumerate(sides):
            with without_autocast(x):
                gathered = a @ u.transpose(1, 2)  # (B h, d/h, c/h)
                if self.normalize:
                    gathered = gathered / max(u.shape[2], 1) ** (1.0 if self.symmetric else 0.5)
                part = self._reason(gathered).transpose(1, 2) @ e
            part = self._joined(part).unflatten(2, x.shape[2:]).to(x.dtype)
            parts.append(self.convolve[n](part).relu() if len(self.convolve) else part)
        y = self.project(torch.cat(parts, 1))
        return match_format(added(self, x, gated(self.gamma, y).to(x.dtype)), x)

    def maps(self, x: Tensor) -> Tensor:
        """How much each node takes of each position, ``(B, K, N)``, the nodes of all kernels one after the other."""
        return torch.cat([self._joined(a) for a, _ in self._sides(x)[1]], 1)

    def _sides(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Features u (B h, c/h, N) and, of each kernel, the weights into the nodes and back, (B h, d/h, N) both."""
        u = self._parted(self.value(x))
        v = u if self.back is None else self._parted(self.back(x))

        def weights(layer: nn.Module, t: Tensor, axis: int) -> Tensor:
            return self._parted(rectified(layer(self._joined(t).unflatten(2, x.shape[2:]).to(x.dtype))), axis)

        sides = []
        for n, to_nodes in enumerate(self.to_nodes):
            if self.symmetric:
                a = e = weights(to_nodes, u, 1)
            else:
                a, e = weights(to_nodes, u, 2), weights(self.to_positions[n], v, 1)
            sides.append((a, e))
        return u, sides

    def _parted(self, t: Tensor, axis: int = 1) -> Tensor:
        """Heads as further images, of length one along ``axis``: ``(B, C, *S) -> (B h, C/h, N)``."""
        return _unit(t.flatten(2).unflatten(1, (self.heads, -1)).flatten(0, 1), axis)

    def _joined(self, t: Tensor) -> Tensor:
        """``(B h, C/h, N) -> (B, C, N)``."""
        return t.unflatten(0, (-1, self.heads)).flatten(1, 2)

    def _reason(self, nodes: Tensor) -> Tensor:
        """Attention among the nodes ``(B h, d/h, c/h)``: softmax of their cosines."""
        if not self.reasoning:
            return nodes
        direction = F.normalize(nodes, dim=2, eps=1e-12)
        return (direction @ direction.transpose(1, 2)).softmax(2) @ nodes


def _unit(t: Tensor, axis: int) -> Tensor:
    # in half precision 1e-12 is nothing, and a dead node divides by it
    return F.normalize(widened(t), dim=axis, eps=1e-12)
