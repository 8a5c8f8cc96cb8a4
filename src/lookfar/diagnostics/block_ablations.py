"""What a network predicts while one of its blocks has to do without something, image by image.

The weights stay as they are, and layers behind the block meet what they were not trained on: a loss may overstate what
the block is worth. What costs nothing here, though, may be taken away.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lookfar._tables import table
from lookfar.blocks import block_info
from lookfar.diagnostics._runs import Batch, Call, Runs, plainly
from lookfar.diagnostics._undisturbed import Batches, undisturbed
from lookfar.diagnostics.adapters import adapted
from lookfar.diagnostics.decomposition import NO_DOT_PRODUCT, decompose
from lookfar.diagnostics.finding import find_block
from lookfar.diagnostics.maps import inner_block, why_no_maps
from lookfar.diagnostics.replacing import is_branch, stands_for_none
from lookfar.insertion.gated import block_name

KINDS = ("full", "mean", "uniform", "other", "pairwise", "unary", "constant", "off")
REPLACED = "it stands in the place of a convolution, and nothing is left without it"
_OF_MAPS = ("mean", "uniform", "other", "pairwise", "unary")

Judge = Callable[[Any, Any, range], Sequence[Any]]


@dataclass(frozen=True)
class Ablations:
    """What came of every image, by what the block did without; as text, a table of changed predictions.

    Attributes:
        block: Registered name, or the class of a module that is not a block of the registry; of several all names.
        counts: ``(images, 3)`` by kind: predictions, those that differ from the full network's, and of these those that
            also differ from it when the block is off.
        kept: What ``judge`` made of every image, by kind; empty without one.
        reasons: Why a kind is missing.
    """

    block: str
    counts: dict[str, Tensor]
    kept: dict[str, list[Any]]
    reasons: dict[str, str]

    def changed(self, kind: str) -> Tensor:
        """The share of an image's predictions that change, ``(images,)``."""
        return self.counts[kind][:, 1] / self.counts[kind][:, 0]

    def changed_of_off(self, kind: str) -> float:
        """The share of change among the predictions that the block decides, which change when it is off.

        Of all images together; nan where the block decides none, or ``off`` was not asked for.
        """
        decided = self.counts["off"][:, 1].sum() if "off" in self.counts else torch.tensor(0.0)
        return float(self.counts[kind][:, 2].sum() / decided) if decided else float("nan")

    def __str__(self) -> str:
        rows: list[list[str | float | None]] = []
        for kind in KINDS:
            if kind in self.counts:
                counts, share = self.counts[kind].sum(0), self.changed_of_off(kind)
                rows.append([kind, float(100 * counts[1] / counts[0]), None if share != share else 100 * share, ""])
            elif kind in self.reasons:
                rows.append([kind, None, None, self.reasons[kind]])
        return table([f"predictions of {self.block}", "% changed", "% of those that off changes", ""], rows)


def classes_of(output: Any) -> Tensor:
    """The prediction of every pixel, or of every image: the largest of axis 1.

    >>> classes_of(torch.tensor([[0.1, 0.9], [0.8, 0.2]]))
    tensor([1, 0])
    """
    if not isinstance(output, Tensor):
        raise ValueError(
            f"want logits (B, classes, ...), got a {type(output).__name__}: give predict=, a function of it"
        )
    return output.argmax(1)


def ablations(
    network: nn.Module,
    block: str | Sequence[str] | None,
    batches: Batches | Tensor,
    *,
    judge: Judge | None = None,
    others: Batches | None = None,
    training: Batches | Tensor | None = None,
    predict: Callable[[Any], Tensor] = classes_of,
    kinds: Sequence[str] = KINDS,
    call: Call = plainly,
) -> Ablations:
    """What a trained network predicts when a block's map is another one, or the block adds something else.

    ``mean`` is the image's own mean map for every query, ``uniform`` a plain average of the values, ``other`` the map
    that the query has in another image, ``pairwise`` and ``unary`` one term of a softmax of dot products, ``constant``
    one vector everywhere in the place of what the block adds, ``off`` nothing at all; a layer in the place of a
    convolution adds nothing, and does without neither. Never are the maps of all queries
    there at once; the network is left as it was.

    Args:
        network: Any network with one of our blocks.
        block: Its name in the network; None where there is one. Several do without the same at once; a module that is
            no block of ours, but keeps the shape of its input, has no maps, and can be a constant or off.
        batches: Images ``(B, C, H, W)`` as the network takes them, or ``(images, labels)``; one batch or several.
        judge: What to keep of each image, from the network's output for a batch, its labels (None without) and the
            numbers of its images: a sequence as long as the batch, such as confusion matrices.
        others: For ``other``, as many batches of the same sizes. By default each image gets the next one of its size,
            and the last the first: give others where neighbours are alike, as frames of a video are.
        training: Images whose mean contribution is the ``constant``; without them it is left out.
        predict: From the network's output to predictions ``(B, ...)``.
        kinds: Those that are wanted.
        call: How the network is called, as under another precision.

    Raises:
        ValueError: No such block, unknown kind, no batch, or others of another size.

    >>> from lookfar import insert
    >>> network, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)), torch.randn(3, 3, 8, 8)
    >>> insert(network, "nonlocal", at="0", example=x)
    ['0.non_local']
    >>> found = ablations(network, None, x)  # it has just entered, as the identity
    >>> found.changed("off").tolist(), found.reasons
    ([0.0, 0.0, 0.0], {'constant': 'no training images to take the mean of'})
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"no ablation is called {kind!r}; there are {', '.join(KINDS)}")
    network = adapted(network)
    names = _names(network, block)
    modules = [network.get_submodule(name) for name in names]
    reasons = dict.fromkeys([kind for kind in _OF_MAPS if kind in kinds], _first(map(why_no_maps, modules)))
    if any(map(is_layer, modules)):
        reasons |= dict.fromkeys([kind for kind in ("constant", "off") if kind in kinds], REPLACED)
    elif training is None and "constant" in kinds:
        reasons["constant"] = "no training images to take the mean of"
    found: list[tuple[int, dict[str, tuple[Tensor, list[Any]]]]] = []
    with undisturbed(network):
        runs = Runs(network, names, call)
        wanted = "constant" in kinds and "constant" not in reasons
        means = runs.means_added(training) if wanted else {}
        for batch, other in runs.with_others(batches, others):
            for name, module in zip(names, modules):
                if is_branch(module) and len(batch.inputs[name][0]) != len(batch.images):
                    raise ValueError(f"{name} sees windows of images, each by itself: want whole images")
            if other is None and not reasons.get("other", "no"):
                reasons["other"] = f"image {batch.start} is the only one of its size"
            terms = [kind for kind in ("pairwise", "unary") if not reasons.get(kind, "no")]
            if terms and any(decompose(module, batch.inputs[name][0]) is None for name, module in zip(names, modules)):
                reasons |= dict.fromkeys(terms, NO_DOT_PRODUCT)
            predictions: dict[str, Tensor] = {}
            kept: dict[str, list[Any]] = {}
            asked = [kind for kind in KINDS if kind in kinds and not reasons.get(kind)]
            for kind, output in runs.outputs(batch, other or {}, means, asked):
                if isinstance(output, Tensor) and not output.isfinite().all():
                    reasons[kind] = f"what the network gives for image {batch.start} or one beside it is not finite"
                    continue
                predictions[kind] = predict(output)
                kept[kind] = [] if judge is None else list(judge(output, batch.labels, _numbers(batch)))
            counts = _counts(predictions, predict(batch.full))
            found.append((batch.start, {kind: (counts[kind], kept[kind]) for kind in predictions}))
    if not found:
        raise ValueError("want at least one batch of images, got none")
    found.sort(key=lambda of: of[0])
    whole = [kind for kind in KINDS if all(kind in of for _, of in found)]
    return Ablations(
        ", ".join(map(called, modules)),
        {kind: torch.cat([of[kind][0] for _, of in found]) for kind in whole},
        {kind: [one for _, of in found for one in of[kind][1]] for kind in whole} if judge is not None else {},
        {kind: reason for kind, reason in reasons.items() if reason},
    )


def is_layer(module: nn.Module) -> bool:
    """Whether a module stands in the place of a convolution: without it there is no network.

    >>> from lookfar import create_block
    >>> is_layer(create_block("local_relation", 16)), is_layer(create_block("nonlocal", 16))
    (True, False)
    """
    if stands_for_none(module):
        return False
    if getattr(getattr(module, "inserted", None), "replaced", None) is not None:
        return True
    try:
        return block_info(inner_block(module)).kind == "layer"
    except ValueError:  # a module of the user's own
        return False


def _names(network: nn.Module, block: str | Sequence[str] | None) -> list[str]:
    """Of the modules that are meant."""
    if block is None:
        return [find_block(network, None)]
    there = dict(network.named_modules(remove_duplicate=False))
    names = [block] if isinstance(block, str) else list(block)
    for name in names:
        if name not in there:
            find_block(network, name)  # says what there is
    if not names:
        raise ValueError("name at least one block, got none")
    return names


def called(module: nn.Module) -> str:
    """A block's registered name, or the class of a module that is not of the registry."""
    try:
        return block_info(inner_block(module)).name
    except ValueError:
        return block_name(module)


def _first(reasons: Iterator[str]) -> str:
    return next(filter(None, reasons), "")


def _numbers(batch: Batch) -> range:
    return range(batch.start, batch.start + len(batch.images))


def _counts(predictions: dict[str, Tensor], full: Tensor) -> dict[str, Tensor]:
    """Of each image: predictions, changed ones, those that "off" changes too; ``(B, 3)`` by kind."""
    changed = {kind: (of != full).reshape(len(full), -1) for kind, of in predictions.items()}
    found = {}
    for kind, of in changed.items():
        with_off = (of & changed["off"]).sum(1) if "off" in changed else torch.zeros_like(of[:, 0])
        found[kind] = torch.stack([torch.ones_like(of).sum(1), of.sum(1), with_off], 1).double().cpu()
    return found
