"""The pictures of a report: images, truth, predictions and the explorer, of the seeds that trials have finished."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lookfar.study import pictures
from lookfar.study.candidates import is_reference
from lookfar.study.charts import Style
from lookfar.study.explorer import explorer, looks, middle_seed, opening
from lookfar.study.results import Results
from lookfar.study.rows import Trial
from lookfar.study.told import Told

Sample = dict[str, Any]


class Gallery:
    """Everything of a study, or of some networks, that shows images.

    Attributes:
        seed: Of the predictions, and with which the explorer opens.
        samples: What was kept of each trial, by candidate and seed.

    Args:
        samples: The same, best candidates first.
        styles: Of all candidates.
        classes: Names of the classes.
        seed: None where there are no samples.
        sentences: What is said of each candidate where it looks: ``name``, ``style``, ``told``, ``text``.
    """

    def __init__(
        self,
        samples: dict[str, dict[int, Sample]],
        styles: Mapping[str, Style],
        classes: Sequence[str],
        seed: int | None,
        sentences: Sequence[Mapping[str, Any]],
    ) -> None:
        self.samples, self.styles, self.seed, self.sentences = samples, styles, seed, sentences
        self.of_seed = {name: of[seed] for name, of in samples.items() if seed is not None and seed in of}
        self.classes, self.colours = list(classes), []
        self.labels = all(pictures.are_maps(s) for of in samples.values() for s in of.values())
        self.images = self._images() if self.of_seed else []

    def _images(self) -> list[dict[str, Any]]:
        first = next(iter(self.of_seed.values()))
        self.order = pictures.most_different(list(self.of_seed.values()))
        if not self.labels:
            return [self._in_words(first, i) for i in self.order[: DETAILS[0].images]]
        highest = max(int(s["prediction"].max()) for of in self.samples.values() for s in of.values())
        self.classes += [f"class {k}" for k in range(len(self.classes), highest + 1)]
        colours = pictures.class_colours(self.classes)
        self.colours = list(zip(self.classes, colours))
        images = []
        for i in self.order[: DETAILS[0].images]:
            truth = first["truth"][i]
            predictions = []
            for name, sample in self.of_seed.items():
                guess = sample["prediction"][i]
                wrong = (guess != truth) & (truth != pictures.IGNORE)
                uris = pictures.labels_uri(guess, colours), pictures.labels_uri(guess, colours, wrong=wrong)
                predictions.append((name, self.styles[name], pictures.right_share(sample, i), *uris))
            images.append(
                {
                    "name": str(first["name"][i]),
                    "uri": pictures.image_uri(first["image"][i]),
                    "truth": pictures.labels_uri(truth, colours),
                    "pixelated": max(truth.shape) < 200,
                    "predictions": predictions,
                }
            )
        return images

    def _in_words(self, first: Sample, i: int) -> dict[str, Any]:
        """An image whose truth and predictions are words."""
        of = self.of_seed.items()
        return {
            "name": str(first["name"][i]),
            "uri": pictures.image_uri(first["image"][i]),
            "truth": str(first["truth"][i]),
            "pixelated": max(first["image"].shape[-2:]) < 200,
            "predictions": [(name, self.styles[name], *_said(sample, i)) for name, sample in of],
        }

    def at(self, detail: pictures.Detail) -> dict[str, Any]:
        """What the template shows at a level of detail."""
        images = self.images[: detail.images]
        maps = [name for name, of in self.samples.items() if any("map" in s for s in of.values())]
        shown = self._explorer(detail) if maps and images and detail.explored else None
        return {
            "seed": self.seed,
            "labels": self.labels,
            "images": images,
            "open": FOLDED if len(images) > FOLDED + 1 and self.labels else len(images),
            "colours": self.colours if images else [],
            "sentences": self.sentences,
            "maps": [(name, self.styles[name]) for name in maps],
            "bare": [(k, n, self.styles[n]) for k, n in enumerate(self.samples) if n not in maps],
            "index": {name: k for k, name in enumerate(self.samples)},
            "explorer": shown,
        }

    def _explorer(self, detail: pictures.Detail) -> dict[str, Any]:
        assert self.seed is not None
        explored = self.order[: min(detail.explored, detail.images)]
        found = explorer(self.samples, self.classes, explored, self.seed, detail)
        block = next(s for s in (*self.of_seed.values(), *self._any_seed()) if "map" in s)
        starts = [opening(block, self.of_seed.get("baseline"), i) for i in explored]
        for image, (_, query) in zip(found["images"], starts):
            image["start"] = query
        found["start"] = max(range(len(starts)), key=lambda k: starts[k][0])
        return found

    def _any_seed(self) -> list[Sample]:
        return [s for of in self.samples.values() for s in of.values()]


def _said(sample: Sample, i: int) -> tuple[str, bool | None]:
    """A prediction in words, and whether it is right, where it is one of several labels."""
    said = str(sample["prediction"][i])
    return said, said == str(sample["truth"][i]) if "exact" in sample else None


def _looks(of_seed: Mapping[int, Sample] | None, told: Told | None) -> str:
    """Where a block looks; nothing where there are no maps for the reason that the verdict has given."""
    text = looks(of_seed) if of_seed else ""
    return "" if told is not None and told.reason and text == f"No maps: {told.reason}." else text


def study_gallery(results: Results, styles: Mapping[str, Style], folded: Collection[str] = ()) -> Gallery:
    """That of a study: it opens with the middle seed of the best block that has maps; no pictures of the folded."""
    samples = _samples(results, folded)
    sentences = [
        {
            "name": row.candidate,
            "style": styles[row.candidate],
            "text": _looks(samples.get(row.candidate), row.told),
            "told": row.told,
        }
        for row in results.summaries
        if not is_reference(row.candidate) and (row.told is not None or row.candidate in samples)
    ]
    return Gallery(samples, styles, results.classes, _opening_seed(results, samples), sentences)


def _opening_seed(results: Results, samples: dict[str, dict[int, Sample]]) -> int | None:
    """Of the seeds that most candidates have, the middle one of the first block with maps."""
    seeds = sorted({seed for of in samples.values() for seed in of})
    if not seeds:
        return None
    have = {seed: sum(seed in of for of in samples.values()) for seed in seeds}
    most = [seed for seed in seeds if have[seed] == max(have.values())]
    for name, of in samples.items():
        scores = {
            t.seed: t.score
            for t in results.trials
            if t.candidate == name and t.seed in most and t.score is not None and "map" in of.get(t.seed, {})
        }
        if scores:
            return middle_seed(scores)
    return most[0]


FOLDED = 4  # rows of predictions that stand open; the others are unfolded
# a report that is too large carries fewer pictures, never fewer numbers
DETAILS = (
    pictures.Detail(),
    pictures.Detail(explored=4, queries=12, keys=24),
    pictures.Detail(images=8, explored=3, queries=12, keys=24, seeds=3, heads=False),
    pictures.Detail(images=8, explored=3, queries=10, keys=20, seeds=3, heads=False),
    pictures.Detail(images=6, explored=2, queries=8, keys=16, seeds=2, heads=False),
    pictures.Detail(images=4, explored=1, queries=8, keys=16, seeds=1, heads=False),
    pictures.Detail(images=2, explored=1, queries=8, keys=16, seeds=1, heads=False),
    pictures.Detail(images=0, explored=0),
)


def _samples(results: Results, folded: Collection[str]) -> dict[str, dict[int, Sample]]:
    """What was kept of each trial that has pictures of the same images, best candidates first."""
    trials: dict[str, list[Trial]] = {s.candidate: [] for s in results.summaries}
    for trial in results.trials:
        if trial.status == "done" and trial.candidate not in folded:
            trials[trial.candidate].append(trial)
    found: dict[str, dict[int, Sample]] = {}
    same = None
    for name, of in trials.items():
        for trial in of:
            sample = pictures.load_samples(Path(trial.folder))
            if sample is None or "prediction" not in sample:
                continue
            same = same or sample["name"].tolist()
            if sample["name"].tolist() == same:
                found.setdefault(name, {})[trial.seed] = pictures.named(sample, results.classes)
    return found
