"""Names of modules in a network: which ones a user means, what stands inside a stage, where a residual branch ends."""

import difflib
import fnmatch
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

# class of a residual block -> attributes whose output is the branch just before the sum, the first that exists counts;
# then the attribute that says whether there is a sum at all
_BRANCHES: dict[str, tuple[tuple[str, ...], str | None]] = {
    "timm.models.resnet.BasicBlock": (("se", "bn2"), None),
    "timm.models.resnet.Bottleneck": (("se", "bn3"), None),
    "timm.models.regnet.Bottleneck": (("conv3",), "downsample"),
    "timm.models._efficientnet_blocks.InvertedResidual": (("bn3",), "has_skip"),
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": (("bn2",), "has_skip"),
    "timm.models._efficientnet_blocks.EdgeResidual": (("bn2",), "has_skip"),
    "torchvision.models.resnet.BasicBlock": (("bn2",), None),
    "torchvision.models.resnet.Bottleneck": (("bn3",), None),
    "torchvision.models.video.resnet.BasicBlock": (("conv2",), None),
    "torchvision.models.video.resnet.Bottleneck": (("conv3",), None),
    "torchvision.models.regnet.ResBottleneckBlock": (("f",), None),
    "torchvision.models.mobilenetv2.InvertedResidual": (("conv",), "use_res_connect"),
    "torchvision.models.mobilenetv3.InvertedResidual": (("block",), "use_res_connect"),
    "torchvision.models.efficientnet.MBConv": (("block",), "use_res_connect"),
}
_BRANCH_FAMILIES = "resnet, regnet, mobilenet and efficientnet of timm and torchvision"


def find_modules(network: nn.Module, patterns: str | Sequence[str], hidden: Collection[nn.Module] = ()) -> list[str]:
    """Names of the modules that ``patterns`` mean, in the network's order.

    A pattern is a dotted name or a glob in which ``*`` does not cross dots. Leading parts may be left out where that
    is unambiguous (``layer3`` for ``backbone.layer3``); timm's feature nets write ``stages_0`` for ``stages.0``.

    Args:
        network: Where to look.
        patterns: One pattern or several.
        hidden: Modules that are not to be found, with all inside them.

    Raises:
        ValueError: A pattern matches nothing, or matches under several unrelated parents.
    """
    outside = {id(inside) for module in hidden for inside in module.modules()}
    names = [name for name, module in network.named_modules() if name and id(module) not in outside]
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    if not wanted:
        raise ValueError("no place is given: `at` is the name of a module or a list of names")
    found: set[str] = set()
    for pattern in wanted:
        flat = {stage.replace(".", "_") for stage in _match(pattern, stage_names(network))}
        matched = _match(pattern, names) or flat & set(names) or _match(pattern.replace(".", "_"), names)
        if not matched:
            raise ValueError(_nothing(network, pattern, names))
        found |= matched
    return [name for name in names if name in found]


def _match(pattern: str, names: Sequence[str]) -> set[str]:
    parts = pattern.split(".")
    tails: dict[tuple[str, ...], set[str]] = {}
    for name in names:
        own = name.split(".")
        split = len(own) - len(parts)
        if split >= 0 and all(fnmatch.fnmatchcase(o, p) for o, p in zip(own[split:], parts)):
            tails.setdefault(tuple(own[:split]), set()).add(name)
    if not tails:
        return set()
    least = min(len(prefix) for prefix in tails)
    nearest = [prefix for prefix in tails if len(prefix) == least]
    if len(nearest) > 1:
        examples = sorted(name for prefix in nearest for name in tails[prefix])
        raise ValueError(f"{pattern!r} could be {', '.join(examples[:4])} and others: give the whole name or a glob")
    return tails[nearest[0]]


def _nothing(network: nn.Module, pattern: str, names: Sequence[str]) -> str:
    ends = {name.rpartition(".")[2]: name for name in reversed(names)}
    near = difflib.get_close_matches(pattern, names, n=3) or [
        ends[end] for end in difflib.get_close_matches(pattern.rpartition(".")[2], ends, n=3)
    ]
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    stages = [stage for stage in stage_names(network) if stage in names or stage.replace(".", "_") in names]
    listed = f" Its stages are {', '.join(stages)}." if stages else ""
    return f"the network has no module {pattern!r}.{hint}{listed}"


def stage_names(network: nn.Module) -> list[str]:
    """What timm says the network's stages are; its outermost modules where it says nothing."""
    info = getattr(network, "feature_info", None)
    entries = getattr(info, "info", info)
    if isinstance(entries, list | tuple) and all(isinstance(e, dict) and "module" in e for e in entries):
        return [entry["module"] for entry in entries]
    return [name for name, _ in network.named_children()]


def blocks_of(stage: nn.Module, hidden: Collection[nn.Module] = ()) -> list[str]:
    """Names, below ``stage``, of the blocks that it runs one after another."""
    children = [(name, child) for name, child in stage.named_children() if child not in hidden]
    if not isinstance(stage, CONTAINERS):
        inside = [(name, child) for name, child in children if isinstance(child, nn.Sequential) and len(child)]
        if inside:  # convnext: a Sequential for the blocks after one for the downsampling
            name, sequence = inside[-1]
            return [f"{name}.{own}" for own in blocks_of(sequence, hidden)]
        if len({type(child) for _, child in children}) > 1:
            return []  # parts of one block
    return [name for name, _ in children]


def branch_ends(stage: nn.Module) -> list[str]:
    """Names, below ``stage``, of the modules whose output a residual block adds to its input.

    Raises:
        ValueError: No residual block of a known kind is in ``stage``.
    """
    found = []
    known = False
    for name, module in stage.named_modules():
        attributes, has_sum = _branch(module)
        present = [a for a in attributes if isinstance(getattr(module, a, None), nn.Module)]
        known = known or bool(present)
        if present and (has_sum is None or getattr(module, has_sum, None) not in (None, False)):
            found.append(f"{name}.{present[0]}".lstrip("."))
    if not found:
        reason = "no block with a sum" if known else "no residual block whose branch ends in a module of its own"
        raise ValueError(
            f"position='branch' finds {reason} in {type(stage).__name__}: it works for {_BRANCH_FAMILIES}; "
            "position='last' works everywhere"
        )
    return found


def _branch(module: nn.Module) -> tuple[tuple[str, ...], str | None]:
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__)
    return next((_BRANCHES[name] for name in names if name in _BRANCHES), ((), None))


def spot_of(network: nn.Module, place: str, hidden: Collection[nn.Module] = ()) -> str:
    """The module after which a block for ``place`` runs: a Sequential gives what its innermost last child gives.

    That child is called by whoever runs the children one by one, where the Sequential itself is not.
    """
    while type(network.get_submodule(place)).forward is nn.Sequential.forward:
        children = [name for name, child in network.get_submodule(place).named_children() if child not in hidden]
        if not children:
            break
        place = f"{place}.{children[-1]}"
    return place


def holders(network: nn.Module, spot: str, hidden: Collection[nn.Module] = ()) -> Iterator[str]:
    """Modules in which a block that runs after ``spot`` may be kept, best first.

    Never a container, since it would run the block as one more child; where a class of its own turns out to do the
    same (timm's RegStage, DenseBlock), the next name is another one. What may be replaced (a norm, an activation, a
    layer) keeps no block either: the module around it does.
    """
    inside = list(_last_children(network, spot, hidden))
    keeps = [name for name in inside if not isinstance(network.get_submodule(name), CONTAINERS)]
    if not keeps or _may_be_replaced(network.get_submodule(keeps[0]), hidden):
        name = spot
        while name:
            name = name.rpartition(".")[0]
            if not isinstance(network.get_submodule(name), CONTAINERS):
                yield name
    yield from keeps


def _last_children(network: nn.Module, name: str, hidden: Collection[nn.Module] = ()) -> Iterator[str]:
    """The module's name, its last child's, that one's last child's, and so on."""
    module = network.get_submodule(name)
    while True:
        yield name
        children = [(own, child) for own, child in module.named_children() if child not in hidden]
        if not children:
            return
        own, module = children[-1]
        name = f"{name}.{own}"


def _may_be_replaced(module: nn.Module, hidden: Collection[nn.Module]) -> bool:
    return is_norm(module) or all(child in hidden for child in module.children())


def is_norm(module: nn.Module) -> bool:
    """Whether the module normalises and does nothing before it: torch's norms, and others by their name."""
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)):
        return True
    layers = (nn.modules.conv._ConvNd, nn.Linear)
    return "Norm" in type(module).__name__ and not any(isinstance(m, layers) for m in module.modules())


def refuse_host(network: nn.Module) -> None:
    """Raise a ValueError where a block would be left out of what has been made of the network already."""
    for name, module in network.named_modules():
        what = next((text for is_one, text in _MADE if is_one(module)), None)
        if what is not None:
            raise ValueError(f"{name or 'the network'} ({type(module).__name__}) {what}")


def _is_flat_graph(module: nn.Module) -> bool:
    if not isinstance(module, torch.fx.GraphModule):
        return False
    exported = "train" in module.__dict__  # torch.export forbids it so
    return exported or not any(node.op == "call_module" for node in module.graph.nodes)


_MADE = (
    (_is_flat_graph, "is a traced graph that calls no modules any more: insert first, trace or export then"),
    (lambda m: isinstance(m, torch.jit.ScriptModule), "is a ScriptModule, which takes no block: insert, then trace it"),
    (
        lambda m: type(m).__name__ == "OptimizedModule" or m._compiled_call_impl is not None,
        "is compiled and would not see a block: insert first, compile then",
    ),
    (
        lambda m: isinstance(m, nn.parallel.DistributedDataParallel),
        "would not synchronise a block's gradients: insert first, wrap then",
    ),
    (
        lambda m: any(type(p).__name__ == "DTensor" for p in m._parameters.values()),
        "has sharded parameters: insert first, shard then (fully_shard)",
    ),
)
