"""What a network predicts while one of its blocks has to do without something, image by image.

The weights stay as they are, and layers behind the block meet what they were not trained on: a loss may overstate what
the block is worth. What costs nothing here, though, may be taken away.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lookfar._tables import table
from lookfar.blocks import block_info
from lookfar.diagnostics import replacing
from lookfar.diagnostics._undisturbed import Batches, inputs_of, pairs, undisturbed
from lookfar.diagnostics.decomposition import NO_DOT_PRODUCT, decompose
from lookfar.diagnostics.finding import find_block
from lookfar.diagnostics.maps import inner_block, why_no_maps

KINDS = ("full", "mean", "uniform", "other", "pairwise", "unary", "constant", "off")
_OF_MAPS = ("mean", "uniform", "other", "pairwise", "unary")

Judge = Callable[[Any, Any, range], Sequence[Any]]


@dataclass(frozen=True)
class Ablations:
    """What came of every image, by what the block did without; as text, a table of changed predictions.

    Attributes:
        block: Registered name.
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


@dataclass
class _Batch:
    start: int
    images: Tensor
    labels: Any
    full: Any
    inputs: list[Tensor]  # of the block, call by call

    @property
    def sizes(self) -> tuple[torch.Size, ...]:
        return tuple(x.shape[1:] for x in self.inputs)


@dataclass
class _Waiting:
    """Batches of one size, of which the last waits for its next image."""

    first: list[Tensor] = field(default_factory=list)
    last: _Batch | None = None
    images: int = 0


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
    block: str | None,
    batches: Batches | Tensor,
    *,
    judge: Judge | None = None,
    others: Batches | None = None,
    training: Batches | Tensor | None = None,
    predict: Callable[[Any], Tensor] = classes_of,
    kinds: Sequence[str] = KINDS,
) -> Ablations:
    """What a trained network predicts when a block's map is another one, or the block adds something else.

    ``mean`` is the image's own mean map for every query, ``uniform`` a plain average of the values, ``other`` the map
    that the query has in another image, ``pairwise`` and ``unary`` one term of a softmax of dot products, ``constant``
    one vector everywhere in the place of what the block adds, ``off`` nothing at all. Never are the maps of all queries
    there at once; the network is left as it was.

    Args:
        network: Any network with one of our blocks.
        block: Its name in the network; None where there is one.
        batches: Images ``(B, C, H, W)`` as the network takes them, or ``(images, labels)``; one batch or several.
        judge: What to keep of each image, from the network's output for a batch, its labels (None without) and the
            numbers of its images: a sequence as long as the batch, such as confusion matrices.
        others: For ``other``, as many batches of the same sizes. By default each image gets the next one of its size,
            and the last the first: give others where neighbours are alike, as frames of a video are.
        training: Images whose mean contribution is the ``constant``; without them it is left out.
        predict: From the network's output to predictions ``(B, ...)``.
        kinds: Those that are wanted.

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
    name = find_block(network, block)
    inner = inner_block(network.get_submodule(name))
    reasons = dict.fromkeys([kind for kind in _OF_MAPS if kind in kinds], why_no_maps(inner))
    if training is None and "constant" in kinds:
        reasons["constant"] = "no training images to take the mean of"
    found: list[tuple[int, dict[str, tuple[Tensor, list[Any]]]]] = []
    with undisturbed(network):
        mean = None if training is None or "constant" not in kinds else _mean_added(network, name, training)
        for batch, other in _with_others(network, name, batches, others):
            if other is None and not reasons.get("other", "no"):
                reasons["other"] = f"image {batch.start} is the only one of its size"
            terms = [kind for kind in ("pairwise", "unary") if not reasons.get(kind, "no")]
            if terms and decompose(inner, batch.inputs[0]) is None:
                reasons |= dict.fromkeys(terms, NO_DOT_PRODUCT)
            predictions: dict[str, Tensor] = {}
            kept: dict[str, list[Any]] = {}
            asked = [kind for kind in KINDS if kind in kinds and not reasons.get(kind)]
            for kind, output in _outputs(network, name, batch, other, mean, asked):
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
        block_info(inner).name,
        {kind: torch.cat([of[kind][0] for _, of in found]) for kind in whole},
        {kind: [one for _, of in found for one in of[kind][1]] for kind in whole} if judge is not None else {},
        {kind: reason for kind, reason in reasons.items() if reason},
    )


def _outputs(
    network: nn.Module, name: str, batch: _Batch, other: list[Tensor] | None, mean: Tensor | None, kinds: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """The network's output by kind."""
    inside: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "full": nullcontext,
        "mean": lambda: replacing.mean_map(network, [name]),
        "uniform": lambda: replacing.uniform_map(network, [name]),
        "other": lambda: replacing.map_of_others(network, [name], {name: other or []}),
        "pairwise": lambda: replacing.one_term(network, [name], "pairwise"),
        "unary": lambda: replacing.one_term(network, [name], "unary"),
        "constant": lambda: replacing.constant(network, {} if mean is None else {name: mean}),
        "off": lambda: replacing.nothing(network, [name]),
    }
    for kind in kinds:
        if kind == "full":
            yield kind, batch.full
            continue
        with inside[kind]():
            yield kind, _run(network, batch.images)


def _run(network: nn.Module, images: Tensor) -> Any:
    """What draws random numbers draws the same ones every time."""
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        return network(images)


def _numbers(batch: _Batch) -> range:
    return range(batch.start, batch.start + len(batch.images))


def _counts(predictions: dict[str, Tensor], full: Tensor) -> dict[str, Tensor]:
    """Of each image: predictions, changed ones, those that "off" changes too; ``(B, 3)`` by kind."""
    changed = {kind: (of != full).view(len(full), -1) for kind, of in predictions.items()}
    found = {}
    for kind, of in changed.items():
        with_off = (of & changed["off"]).sum(1) if "off" in changed else torch.zeros_like(of[:, 0])
        found[kind] = torch.stack([torch.ones_like(of).sum(1), of.sum(1), with_off], 1).double().cpu()
    return found


def _with_others(
    network: nn.Module, name: str, batches: Any, others: Any
) -> Iterator[tuple[_Batch, list[Tensor] | None]]:
    """Each batch with what goes into the block for other images; None where an image has no other of its size."""
    if others is not None:
        for batch, (images, _) in zip(_seen(network, name, batches), pairs(network, others), strict=True):
            with inputs_of(network, [name]) as seen:
                _run(network, images)
            if [x.shape for x in seen[name]] != [x.shape for x in batch.inputs]:
                raise ValueError(
                    f"want others of the same size: {tuple(batch.images.shape)}, got {tuple(images.shape)}"
                )
            yield batch, seen[name]
        return
    waiting: dict[tuple[torch.Size, ...], _Waiting] = {}
    for batch in _seen(network, name, batches):
        of_size = waiting.setdefault(batch.sizes, _Waiting([x[:1] for x in batch.inputs]))
        if of_size.last is not None:
            yield of_size.last, _shifted(of_size.last, [x[:1] for x in batch.inputs])
        of_size.last = batch
        of_size.images += len(batch.images)
    for of_size in waiting.values():
        if of_size.last is not None:
            yield of_size.last, _shifted(of_size.last, of_size.first) if of_size.images > 1 else None


def _shifted(batch: _Batch, following: list[Tensor]) -> list[Tensor]:
    return [torch.cat([x[1:], after]) for x, after in zip(batch.inputs, following)]


def _seen(network: nn.Module, name: str, batches: Any) -> Iterator[_Batch]:
    start = 0
    for images, labels in pairs(network, batches):
        with inputs_of(network, [name]) as seen:
            full = _run(network, images)
        if not seen[name]:
            raise ValueError(f"the network does not call its block {name!r}")
        yield _Batch(start, images, labels, full, seen[name])
        start += len(images)


def _mean_added(network: nn.Module, name: str, training: Any) -> Tensor:
    """What the block adds on average over positions and images, ``(C,)``."""
    total = replacing.Seen()
    for images, _ in pairs(network, training):
        total.inputs.clear()
        with replacing.watched(network, [name], total):
            _run(network, images)
    if name not in total.sums:
        raise ValueError("want at least one batch of training images, got none")
    return total.means()[name]
