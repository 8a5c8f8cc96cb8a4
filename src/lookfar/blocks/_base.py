"""The registry of blocks: a dictionary and a decorator, nothing more."""

import ast
import fnmatch
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from torch import Tensor, nn

from lookfar import ops
from lookfar._options import check, check_arguments, nearest, refused_by
from lookfar._overview import canonical_name
from lookfar.blocks._texts import complete
from lookfar.ops._precision import wide, widened

Kind = Literal["context", "layer", "upsampler", "head", "region", "tokens"]
Family = Literal[
    "pairwise", "global", "channel", "low_rank", "graph", "local", "sparse", "external", "pyramid", "where"
]


@dataclass(frozen=True)
class BlockInfo:
    """What is known about a block: lists, documents, the command line and reports read it from here.

    Attributes:
        name: Canonical name, as given to :func:`create_block`.
        title: Human name.
        paper: Title of the paper with venue and year.
        arxiv: arXiv id, or an empty string.
        family: How it looks: pairwise, global, channel, low_rank, graph, local, sparse, external, pyramid, where.
        kind: What it takes and gives: context blocks keep the shape and drop in anywhere.
        complexity: Time as a formula in N, C and the block's own sizes.
        memory: Extra memory as a formula.
        verified: What the block's numbers were compared with: ``repository@commit:file``, one entry a source.
        attends: ``"weights"`` has attention, values, finish; ``"maps"`` has maps; ``"none"`` has neither.
        residual: The published block adds to its input; others enter a network as x + gamma (block(x) - x). Those of
            kind context have an option of this name: off, the block is what it adds alone, and enters like the others.
        aliases: Names used in papers and other libraries.
        differences: Where paper and authors' code differ, and which one is the default.
        author_keys: Regular expression of an author's parameter prefix -> our prefix, see :mod:`lookfar.weights`.
        cls: The class.
        formula: What it computes in LaTeX, one string a line; the docstring says the same in plain characters.
    """

    name: str
    title: str
    paper: str
    arxiv: str
    family: Family
    kind: Kind
    complexity: str
    memory: str
    verified: tuple[str, ...]
    attends: Literal["weights", "maps", "none"]
    residual: bool
    aliases: tuple[str, ...]
    differences: tuple[str, ...]
    author_keys: Mapping[str, str] = field(repr=False)
    cls: type[nn.Module] = field(repr=False)
    formula: tuple[str, ...] = field(default=(), repr=False)

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The constructor's keyword options, without ``device`` and ``dtype``."""
        parameters = inspect.signature(self.cls).parameters
        return {k: p for k, p in parameters.items() if k not in ("channels", "device", "dtype")}


_BLOCKS: dict[str, BlockInfo] = {}
_ALIASES: dict[str, str] = {}

# what users of other libraries write -> what it is called here, with what must be done to the value
_TRANSLATIONS = {
    "num_heads": "heads",
    "n_head": "heads",
    "in_channels": "channels (the first argument)",
    "dim": "channels (the first argument)",
    "d_model": "channels (the first argument)",
    "inplanes": "channels (the first argument)",
    "inter_channels": "inner_channels",
    "planes": "inner_channels",
    "key_channels": "inner_channels",
    "ratio": "reduction (its inverse: ratio=1/16 is reduction=16)",
    "rd_ratio": "reduction (its inverse: rd_ratio=1/16 is reduction=16)",
    "reduction_ratio": "reduction",
    "sub_sample": "subsample (the stride, as in subsample=2)",
    "num_bases": "bases",
    "num_stages": "iterations",
    "stage_num": "iterations",
    "pooling_type": "pooling",
    "fusion_types": "fusion",
    "norm_cfg": "norm_layer (a class, as in norm_layer=nn.BatchNorm2d)",
    "bn_layer": "norm_layer (a class, as in norm_layer=nn.BatchNorm2d)",
    "window_size": "kernel_size",
    "attention": "mixer",
}

M = TypeVar("M", bound=type[nn.Module])


def block(
    name: str,
    *,
    title: str,
    paper: str,
    arxiv: str = "",
    formula: tuple[str, ...] = (),
    family: Family,
    kind: Kind = "context",
    complexity: str,
    memory: str,
    verified: tuple[str, ...],
    attends: Literal["weights", "maps", "none"],
    residual: bool = True,
    aliases: tuple[str, ...] = (),
    differences: tuple[str, ...] = (),
    author_keys: Mapping[str, str] | None = None,
) -> Callable[[M], M]:
    """Record a block class under its canonical name, with its facts (see :class:`BlockInfo`)."""

    def record(cls: M) -> M:
        for taken in (name, *aliases):
            if taken in _BLOCKS or taken in _ALIASES:
                raise ValueError(f"the block name {taken!r} is taken by {_BLOCKS[_ALIASES.get(taken, taken)].cls}")
        _BLOCKS[name] = BlockInfo(
            name, title, paper, arxiv, family, kind, complexity, memory, verified, attends, residual, aliases,
            differences, dict(author_keys or {}), cls, formula,
        )  # fmt: skip
        _ALIASES.update(dict.fromkeys(aliases, name))
        cls.__init__ = _checked(cls.__init__, _BLOCKS[name])
        cls.__doc__ = complete(cls.__doc__, ["channels", *_BLOCKS[name].options])
        if kind not in ("tokens", "region"):
            cls.forward = _of_maps(cls.forward, _BLOCKS[name])
        if hasattr(cls, "finish"):
            _keep_law(cls)
        return cls

    return record


def _checked(build: Callable[..., None], info: BlockInfo) -> Callable[..., None]:
    """A constructor that holds what it is given against its own annotations before it builds anything."""
    signature, hints = inspect.signature(build), get_type_hints(build, include_extras=True)
    hints = {**hints, "channels": int, "dd": Any}

    @functools.wraps(build)
    def checked(self: nn.Module, *args: Any, **options: Any) -> None:
        _check_known(info, options)
        if "residual" in info.options:
            self.residual = options.pop("residual", True)
            options = _without_gate(self.residual, info, options)
        check_arguments(signature, hints, (self, *args), options)
        build(self, *args, **options)
        if "dims" in info.options:
            self.dims = options.get("dims", info.options["dims"].default)

    named = [p for p in signature.parameters.values() if p.name != "dd"]
    if info.kind == "context" and info.residual:
        named += [inspect.Parameter("residual", inspect.Parameter.KEYWORD_ONLY, default=True, annotation=bool)]
    named += [inspect.Parameter(p, inspect.Parameter.KEYWORD_ONLY, default=None) for p in ("device", "dtype")]
    checked.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
    return checked


def _without_gate(residual: Any, info: BlockInfo, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a block with or without its sum; ``added`` and ``gate`` of :mod:`lookfar.blocks._layers` read it.

    Raises:
        ValueError: Another value than a truth value; a start or a form that has a meaning beside the sum alone.
    """
    check("residual", residual, bool)
    if residual:
        return options
    if options.get("zero_init"):
        raise ValueError("zero_init=True starts x + f(x) as x: residual=False gives f(x) alone and has no such start")
    if options.get("form") == "published":
        raise ValueError("form='published' is the authors' module alone: residual=False is for form='block'")
    return {**options, "zero_init": False} if "zero_init" in info.options else options


def _of_maps(forward: Callable[..., Any], info: BlockInfo) -> Callable[..., Any]:
    """A forward that takes maps with as many axes as the block was built for, and says what to change otherwise."""

    @functools.wraps(forward)
    def checked(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.dim() != (getattr(self, "dims", 2) or max(x.dim() - 2, 1)) + 2:
            raise ValueError(_explain_axes(info, getattr(self, "dims", 2), tuple(x.shape)))
        return forward(self, x, *args, **kwargs)

    return checked


def _check_known(info: BlockInfo, options: Mapping[str, Any]) -> None:
    unknown = [option for option in options if option not in (*info.options, "channels", "device", "dtype")]
    if unknown:
        raise TypeError(_explain(info, unknown[0]))


@functools.cache
def _load_all() -> None:
    """Import every file of the folder once: a block is known by being there."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith("_"):
            importlib.import_module(f"lookfar.blocks.{module.name}")


def list_blocks(pattern: str | None = None, *, kind: str | None = None, family: str | None = None) -> list[str]:
    """Canonical names in alphabetical order, filtered by a glob pattern, a kind, a family.

    >>> list_blocks("*gaussian*")
    []
    """
    _load_all()
    return sorted(
        name
        for name, info in _BLOCKS.items()
        if (pattern is None or fnmatch.fnmatch(name, pattern))
        and kind in (None, info.kind)
        and family in (None, info.family)
    )


def block_info(name: str | type[nn.Module] | nn.Module) -> BlockInfo:
    """The facts of a block by name, alias, class or instance.

    Raises:
        ValueError: No block has this name; the message names the nearest ones.

    >>> block_info("danet").name
    'dual_attention'
    """
    _load_all()
    if not isinstance(name, str):
        if isinstance(own := getattr(name, "info", None), BlockInfo):
            return own  # of what stands for a foreign module
        cls = name if isinstance(name, type) else type(name)
        for info in _BLOCKS.values():
            if info.cls is cls:
                return info
        raise ValueError(f"{cls.__name__} is not a registered block")
    return _BLOCKS[canonical_name(name, _BLOCKS, _ALIASES, ops.__all__)]


def create_block(name: str, channels: int, **options: Any) -> nn.Module:
    """Build a block by name.

    Args:
        name: Canonical name or alias; :func:`list_blocks` lists them.
        channels: Channels of the feature map.
        **options: The block's own options, ``device`` and ``dtype``. Classes of layers may be names of ``torch.nn``, as
            in ``norm_layer="BatchNorm2d"``.

    Raises:
        ValueError: Unknown name, channels that are no positive integer, an option's value that the block does not take.
        TypeError: Unknown option; the message names those that the block takes.

    >>> create_block("se", 64, reduction=4).reduce
    Linear(in_features=64, out_features=16, bias=True)
    """
    return block_info(name).cls(channels, **{option: made_by(option, value) for option, value in options.items()})


def made_by(option: str, value: Any) -> Any:
    """The class of ``torch.nn`` that a word names where an option wants a class; anything else as it is."""
    if not (isinstance(value, str) and option.endswith("_layer")):
        return value
    from torch import nn

    found = getattr(nn, value.removeprefix("nn."), None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else value


def parse_block(text: str) -> tuple[str, dict[str, Any]]:
    """Read a block with options as it is written on the command line: canonical name and options.

    Values are Python literals (``2``, ``0.5``, ``True``, ``None``, ``(1, 3, 6)``) or bare words, which are strings;
    classes are words too (``norm_layer=nn.BatchNorm2d``).

    >>> parse_block("pam(reduction=4)")
    ('position_attention', {'reduction': 4})
    >>> parse_block("generalized_attention(terms=0010)")
    ('generalized_attention', {'terms': '0010'})

    Raises:
        ValueError: Text of another form, unknown name, a value that is neither a literal nor a word.
        TypeError: Unknown option.
    """
    name, bracket, inside = text.strip().partition("(")
    info = block_info(name.strip())
    options = parse_options(inside, text, f"{info.name}(option=value, ...)") if bracket else {}
    for option, value in options.items():
        if option not in info.options:
            raise TypeError(_explain(info, option))
        if type(value) is int and isinstance(info.options[option].default, str):
            options[option] = str(value)  # switches such as terms=1110 are words
    return info.name, options


def parse_options(inside: str, text: str, wanted: str) -> dict[str, Any]:
    """Read ``option=value, ...)``, the part of ``text`` behind its opening bracket.

    Raises:
        ValueError: Text of another form than ``wanted``, a value that is neither a literal nor a word.
    """
    try:
        # the name stays outside: `nonlocal` is a keyword of Python. 0010 is no number of Python, and a word here
        quoted = re.sub(r"(=\s*)(0\d+)(?=\s*[,)])", r"\1'\2'", inside)
        call = ast.parse(f"f({quoted}", mode="eval").body
    except SyntaxError:
        raise ValueError(f"cannot read {text!r}: want {wanted}") from None
    if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
        raise ValueError(f"cannot read {text!r}: want {wanted}")
    options: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError(f"cannot read {text!r}: want {wanted}")
        try:
            word = keyword.value
            names = isinstance(word, ast.Name | ast.Attribute)
            options[keyword.arg] = ast.unparse(word) if names else ast.literal_eval(word)
        except ValueError:
            raise ValueError(
                f"cannot read {keyword.arg}={ast.unparse(keyword.value)} in {text!r}: want a number, a word, "
                "True, False, None or a tuple of these"
            ) from None
    return options


def _explain(info: BlockInfo, option: str) -> str:
    message = f"{info.name} has no option {option!r}."
    if option in _TRANSLATIONS:
        message += f" Here it is called {_TRANSLATIONS[option]}."
    else:
        near = nearest(option, info.options)
        message += f" Did you mean {near}?" if near else ""
    return f"{message} It takes: {', '.join(info.options) or 'no options'}."


def _keep_law(cls: Any) -> None:
    """Make ``finish(x, attention(x) @ values(x))`` hold in every precision: two factors in float32 at least.

    ``finish`` takes their product, or what the block itself mixes in half precision. Sums that are no averages stay
    wide until the block narrows them.
    """
    attention, values, finish = cls.attention, cls.values, cls.finish

    @functools.wraps(attention)
    def wide_attention(self: nn.Module, x: Tensor, queries: Tensor | None = None) -> Tensor:
        return widened(attention(self, x, queries))

    @functools.wraps(values)
    def wide_values(self: nn.Module, x: Tensor) -> Tensor:
        return widened(values(self, x))

    @functools.wraps(finish)
    def narrow_finish(self: nn.Module, x: Tensor, mixed: Tensor) -> Tensor:
        averages = getattr(self, "normalization", "softmax") != "none"
        return finish(self, x, mixed.to(x.dtype) if averages and wide(x) != x.dtype else mixed)

    cls.attention, cls.values, cls.finish = wide_attention, wide_values, narrow_finish


def _explain_axes(info: BlockInfo, dims: int | None, shape: tuple[int, ...]) -> str:
    maps = {1: "(B, C, L)", 2: "(B, C, H, W)", 3: "(B, C, T, H, W)", None: "(B, C, *S)"}[dims]
    message = f"{info.name} takes maps {maps}, got {shape}"
    if "dims" not in info.options:
        return message
    message = message.replace(" takes", f"(dims={dims}) takes") if dims else message
    wanted = len(shape) - 2
    for refused in refused_by(info.options["dims"].annotation):
        if refused.value == wanted:
            return f"{message}: {refused.why}"
    batch = "add the batch axis, or " if dims is not None and wanted == dims - 1 else ""
    return f"{message}: {batch}build it with dims={wanted}" if wanted in (1, 2, 3) else message


def sample_inputs(module: nn.Module, channels: int, size: tuple[int, ...], *, batch: int = 2) -> tuple[Tensor, ...]:
    """Random inputs that ``module.forward`` takes on a map of ``size``; blocks that want more than x say what.

    >>> [tuple(x.shape) for x in sample_inputs(create_block("object_contextual", 16), 16, (6, 5))]
    [(2, 16, 6, 5), (2, 5, 6, 5)]
    """
    import torch

    own = getattr(module, "sample_inputs", None)
    return own(size, batch=batch) if own else (torch.randn(batch, channels, *size),)
