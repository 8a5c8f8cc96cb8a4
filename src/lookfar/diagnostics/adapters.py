"""Attention of other libraries with the contract of our blocks: ``attention``, ``values``, ``finish``.

``torch.nn.MultiheadAttention``, and what has projections of queries, keys and values and a factor: attention of timm's
ViT, EVA, DINOv3, BEiT and Swin, and of Hugging Face's ViT, DINOv3, CLIP and SegFormer. Queries and keys are computed
again, so that maps are there under fused kernels too, with biases of positions, rotations and masks as the network gave
them.

:func:`adapted` gives a network whose attention answers; it has its tensors in common with the one that was given, which
stays untouched. Before any map is shown, what the recomputed maps give is held against the module's own output; where
they differ, the block says so in the place of maps.

A block here sees the tokens as ``(B, C, N)``, class and register tokens first, and gives what the network adds to them
elsewhere: its output is a branch, to which nothing is added inside.
"""

import copy
import itertools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from lookfar.blocks import BlockInfo, block_info
from lookfar.ops._precision import widened

TOLERANCE = 1e-3  # of an output of which maps in single precision tell; in half precision 30 times as much
MASKS = ("attn_mask", "attention_mask", "key_padding_mask", "mask")  # names of arguments
LAST = ("proj", "o_proj", "out_proj")  # names of the layer behind the weighted sums
TRIED = 4  # tokens at which the output is compared


class TokenAttention(nn.Module):
    """Self-attention of a foreign module as a block of tokens ``(B, C, N)``.

    Args:
        module: What computes it.
    """

    branch = True  # what it gives is added elsewhere
    info: BlockInfo

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.context: dict[str, Any] = {}  # what the network gives beside the tokens: rotations, masks, sizes
        self.further: Any = None  # what the module gives beside its output
        self.wrong = ""
        self.compared = False

    def forward(self, x: Tensor) -> Tensor:
        """The module's own output as ``(B, C', N)``."""
        y = self._call(x.transpose(1, 2))
        if not (self.compared or self.training):
            self.wrong, self.compared = self._why_wrong(x, y), True
        return y.transpose(1, 2)

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, M)`` of the tokens ``(Q,)``, of all when None."""
        q, k, _ = self.parts(x.transpose(1, 2))
        bias = self.bias(x.transpose(1, 2))
        if queries is not None:
            q = q[..., queries, :]
            bias = bias if bias is None or bias.shape[-2] == 1 else bias[..., queries, :]
        logits = self.scale * widened(q) @ widened(k).transpose(-2, -1)
        return (logits if bias is None else logits + widened(bias)).softmax(-1)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, h, M, E)``."""
        return widened(self.parts(x.transpose(1, 2))[2])

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The module's output ``(B, C', N)`` from its tokens and the weighted sums ``(B, h, N, E)``."""
        tokens = x.transpose(1, 2)
        return self.after(tokens, mixed.transpose(1, 2).flatten(2).to(tokens.dtype)).transpose(1, 2)

    def key_grid(self, size: Any) -> None:
        """Tokens form no grid, as far as the block knows."""

    @property
    def masked(self) -> bool:
        """Whether the network hides some keys from some queries."""
        return any(self.context.get(name) is not None for name in MASKS)

    @property
    def scale(self) -> float:
        """Factor on the products of queries and keys."""
        raise NotImplementedError

    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(B, h, N, D)``, keys ``(B, h, M, D)`` and values ``(B, h, M, E)``."""
        raise NotImplementedError

    def bias(self, tokens: Tensor) -> Tensor | None:
        """What is added to the logits, to be broadcast to ``(B, h, N, M)``."""
        return None

    def after(self, tokens: Tensor, y: Tensor) -> Tensor:
        """What follows the weighted sums ``(B, N, h E)``, position by position."""
        raise NotImplementedError

    def enter(self, *args: Any, **kwargs: Any) -> Tensor:
        """From the arguments of the module to its tokens ``(B, N, C)``; the others are kept as ``context``."""
        raise NotImplementedError

    def leave(self, y: Tensor) -> Any:
        """From tokens ``(B, N, C')`` to what the module gives."""
        return y

    def _call(self, tokens: Tensor) -> Tensor:
        """The module's own output, ``(B, N, C')``."""
        raise NotImplementedError

    @torch.no_grad()
    def _why_wrong(self, x: Tensor, y: Tensor) -> str:
        """Why the maps do not give the module's output, asked at a few tokens; an empty string where they do."""
        N = x.shape[-1]
        if y.shape[:2] != (len(x), N):
            return "it gives other tokens than it sees"
        some = torch.arange(min(TRIED, N), device=x.device) * (N - 1) // max(min(TRIED, N) - 1, 1)
        want = y[:, some].float()
        try:
            mixed = self.attention(x, some) @ self.values(x)
            got = self.finish(x[..., some], mixed).transpose(1, 2).float()
            near = got.shape == want.shape and bool(
                (got - want).abs().max() <= (1 if y.dtype.itemsize > 2 else 30) * TOLERANCE * want.abs().max() + 1e-6
            )
        except (RuntimeError, AttributeError, TypeError, ValueError) as error:
            return f"its maps cannot be computed again: {' '.join(str(error).split())[:80]}"
        return "" if near else "its output is not what its queries, keys and values give"


class ProjectedAttention(TokenAttention):
    """Attention with layers of its own for queries, keys and values: timm's and Hugging Face's."""

    info = BlockInfo(
        *("attention", "Multi-head self-attention", "Attention Is All You Need (NeurIPS 2017)", "1706.03762"),
        *("pairwise", "context", "N^2 C", "N C", (), "weights", False, (), (), {}, TokenAttention),
    )

    @property
    def scale(self) -> float:
        return float(getattr(self.module, "scale", None) or self.module.scaling)  # pyright: ignore

    @property
    def _heads(self) -> int:
        found = getattr(self.module, "num_heads", None) or getattr(self.module, "num_attention_heads", None)
        assert isinstance(found, int)
        return found

    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m: Any = self.module
        if getattr(m, "qkv", None) is not None:
            three = m.qkv(tokens)
            if getattr(m, "q_bias", None) is not None:
                three = three + torch.cat([m.q_bias, m.k_bias, m.v_bias])
            q, k, v = three.unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        else:
            source = tokens
            if getattr(m, "sequence_reduction_ratio", 1) > 1:
                source = m.sequence_reduction(tokens, *self._size)
            q, k, v = m.q_proj(tokens), m.k_proj(source), m.v_proj(source)
            width = q.shape[-1] // self._heads
            q, k, v = (t.unflatten(-1, (-1, width)).transpose(1, 2) for t in (q, k, v))
        if getattr(m, "q_norm", None) is not None:
            q, k = m.q_norm(q), m.k_norm(k)
        if (rope := self.context.get("rope")) is not None:
            q, k = (self._rotated(t, rope) for t in (q, k))
        elif (positions := self.context.get("position_embeddings")) is not None:
            q, k = (_turned(t, *positions) for t in (q, k))
        groups = q.shape[1] // k.shape[1]
        k, v = (t.repeat_interleave(groups, 1) if groups > 1 else t for t in (k, v))
        return q, k, v

    @property
    def _size(self) -> tuple[int, int]:
        height, width = (self.context.get(name) for name in ("height", "width"))
        assert isinstance(height, int)
        assert isinstance(width, int)
        return height, width

    def _rotated(self, t: Tensor, rope: Tensor) -> Tensor:
        from timm.layers import apply_rot_embed_cat

        prefix: int = self.module.num_prefix_tokens  # pyright: ignore
        half = getattr(self.module, "rotate_half", False)
        return torch.cat([t[:, :, :prefix], apply_rot_embed_cat(t[:, :, prefix:], rope, half=half)], 2).type_as(t)

    def bias(self, tokens: Tensor) -> Tensor | None:
        m, found = self.module, []
        if getattr(m, "relative_position_bias_table", None) is not None:
            found.append(m._get_rel_pos_bias())  # pyright: ignore
        if getattr(m, "rel_pos", None) is not None:
            found.append(m.rel_pos.get_bias())  # pyright: ignore
        elif (shared := self.context.get("shared_rel_pos")) is not None:
            found.append(shared)
        if (shared := self.context.get("shared_rel_pos_bias")) is not None:
            found.append(shared)
        for name in ("attn_mask", "attention_mask"):
            if (mask := self.context.get(name)) is not None:
                found.append(_additive(mask, tokens))
        if (mask := self.context.get("mask")) is not None:  # of windows: (windows, N, N) of each image
            found.append(mask.repeat(len(tokens) // len(mask), 1, 1).unsqueeze(1))
        return sum(found[1:], found[0]) if found else None

    def after(self, tokens: Tensor, y: Tensor) -> Tensor:
        m: Any = self.module
        if isinstance(getattr(m, "norm", None), nn.Module):
            y = m.norm(y)
        if getattr(m, "gate", None) is not None:
            y = y * m.gate(tokens).sigmoid()
        return next(getattr(m, name) for name in LAST if hasattr(m, name))(y)

    def enter(self, *args: Any, **kwargs: Any) -> Tensor:
        names = _names(self.module)
        given = {**dict(zip(names, args)), **kwargs}
        tokens = given.pop(names[0])
        if not isinstance(tokens, Tensor) or tokens.dim() != 3:
            raise _Elsewhere("it sees no sequences of tokens (B, N, C)")
        self.context = given
        return tokens

    def leave(self, y: Tensor) -> Any:
        return (y, *self.further) if self.further is not None else y

    def _call(self, tokens: Tensor) -> Tensor:
        out = self.module(tokens, **self.context)
        if isinstance(out, tuple):
            out, *self.further = out
        return out


class TorchAttention(TokenAttention):
    """``torch.nn.MultiheadAttention`` of a sequence to itself."""

    info = ProjectedAttention.info

    @property
    def scale(self) -> float:
        return self._own.head_dim**-0.5

    @property
    def _own(self) -> nn.MultiheadAttention:
        assert isinstance(self.module, nn.MultiheadAttention)
        return self.module

    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m = self._own
        if m.in_proj_weight is not None:
            weights = m.in_proj_weight.chunk(3)
        else:
            weights = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
        biases = (None, None, None) if m.in_proj_bias is None else m.in_proj_bias.chunk(3)
        projected = (nn.functional.linear(tokens, w, b) for w, b in zip(weights, biases))
        q, k, v = (t.unflatten(-1, (m.num_heads, -1)).transpose(1, 2) for t in projected)
        return q, k, v

    def bias(self, tokens: Tensor) -> Tensor | None:
        found = []
        if (mask := self.context.get("attn_mask")) is not None:
            mask = _additive(_seen_where(mask), tokens)
            found.append(mask.unflatten(0, (len(tokens), -1)) if mask.dim() == 3 else mask)
        if (padding := self.context.get("key_padding_mask")) is not None:
            found.append(_additive(_seen_where(padding), tokens)[:, None, None])
        return sum(found[1:], found[0]) if found else None

    def after(self, tokens: Tensor, y: Tensor) -> Tensor:
        return self._own.out_proj(y)

    def enter(self, *args: Any, **kwargs: Any) -> Tensor:
        given = {**dict(zip(_names(self.module), args)), **kwargs}
        query, key, value = (given.pop(name) for name in ("query", "key", "value"))
        if not (query is key is value) or query.dim() != 3:
            raise _Elsewhere("it attends from one sequence to another, or to no batch of them")
        self.context = given
        return query if self._own.batch_first else query.transpose(0, 1)

    def leave(self, y: Tensor) -> Any:
        return (y if self._own.batch_first else y.transpose(0, 1), self.further)

    def _call(self, tokens: Tensor) -> Tensor:
        tokens = tokens if self._own.batch_first else tokens.transpose(0, 1)
        y, self.further = self._own(tokens, tokens, tokens, **self.context)
        return y if self._own.batch_first else y.transpose(0, 1)


class _Elsewhere(Exception):
    """A call that is no self-attention of a batch of sequences."""


class Adapted(nn.Module):
    """Stands where a foreign attention stood; what is hung on it hangs on its block, which sees ``(B, C, N)``.

    Args:
        block: The attention as a block.
    """

    def __init__(self, block: TokenAttention) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        try:
            tokens = self.block.enter(*args, **kwargs)
        except _Elsewhere as why:
            self.block.wrong = str(why)
            return self.block.module(*args, **kwargs)
        return self.block.leave(self.block(tokens.transpose(1, 2)).transpose(1, 2))

    def register_forward_pre_hook(self, hook: Any, **how: Any) -> Any:  # pyright: ignore
        """On the block."""
        return self.block.register_forward_pre_hook(hook, **how)

    def register_forward_hook(self, hook: Any, **how: Any) -> Any:  # pyright: ignore
        """On the block."""
        return self.block.register_forward_hook(hook, **how)

    def __getattr__(self, name: str) -> Any:
        """What the network reads of the attention that stood here."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(cast(TokenAttention, super().__getattr__("block")).module, name)


def adapter_of(module: nn.Module) -> Callable[[nn.Module], TokenAttention] | None:
    """What makes a block of a foreign attention; None for modules that are no attention known here."""
    if isinstance(module, nn.MultiheadAttention):
        return TorchAttention
    heads = any(isinstance(getattr(module, name, None), int) for name in ("num_heads", "num_attention_heads"))
    factor = any(isinstance(getattr(module, name, None), float) for name in ("scale", "scaling"))
    made = all(isinstance(getattr(module, f"{name}_proj", None), nn.Module) for name in "qkv")
    weight = getattr(getattr(module, "qkv", None), "weight", None)
    made = made or (isinstance(weight, Tensor) and weight.dim() == 2)  # a linear layer, or an adapter in its place
    given = any(isinstance(getattr(module, name, None), nn.Module) for name in LAST)
    return ProjectedAttention if heads and factor and made and given and not _is_ours(module) else None


def adapted(network: nn.Module) -> nn.Module:
    """A network with its attention modules as blocks that tell their maps; the network itself where it has none.

    Tensors are shared, modules are not: the network that is given stays as it is.

    Args:
        network: Of timm, torchvision, transformers or torch, without blocks of ours.

    >>> import timm
    >>> network = adapted(timm.create_model("vit_tiny_patch16_224", img_size=32).eval())
    >>> block, x = network.blocks[0].attn.block, torch.randn(1, 192, 5)
    >>> block.attention(x, torch.tensor([0])).shape
    torch.Size([1, 3, 1, 5])
    """
    found = [name for name, module in network.named_modules() if name and adapter_of(module) is not None]
    if not found or any(_is_ours(module) for module in network.modules()):
        return network
    shared = {id(t): t for t in itertools.chain(network.parameters(), network.buffers())}
    twin = copy.deepcopy(network, shared)
    for name in found:
        holder, _, child = name.rpartition(".")
        module = twin.get_submodule(name)
        make = adapter_of(module)
        assert make is not None
        setattr(twin.get_submodule(holder), child, _placed(Adapted(make(module)), module))
    return twin


def _placed(outside: Adapted, module: nn.Module) -> Adapted:
    outside.train(module.training)
    return outside


def _is_ours(module: nn.Module) -> bool:
    if isinstance(module, Adapted | TokenAttention):
        return True
    try:
        block_info(module)
    except ValueError:
        return hasattr(module, "inserted")
    return True


def _turned(t: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Patches ``(B, h, N, D)`` turned by their places, halves of channels against each other, as transformers do."""
    prefix = t.shape[-2] - sines.shape[-2]
    patches = t[..., prefix:, :]
    first, second = patches.chunk(2, -1)
    turned = patches * cosines + torch.cat([-second, first], -1) * sines
    return torch.cat([t[..., :prefix, :], turned], -2).type_as(t)


def _names(module: nn.Module) -> list[str]:
    """Of the arguments of its forward, in their order."""
    import inspect

    return [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind is not p.VAR_KEYWORD]


def _seen_where(mask: Tensor) -> Tensor:
    """torch's attention marks what is not seen, and all others what is."""
    return ~mask if mask.dtype == torch.bool else mask


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as what is added to logits; True is seen."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, -torch.inf)
