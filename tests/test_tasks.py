"""What tasks have in common, and what a task need not say."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import tiny_data, tiny_network
from torch import nn

from lookfar.data import Data, MemorySamples
from lookfar.tasks import TASKS, Segmentation, Task, Words, find_task
from lookfar.training import Settings, evaluate, train


class Brightness(Task):
    """The share of bright pixels."""

    name = "brightness"
    metric = "error"
    words = Words(score="error")
    higher = False

    def judge(self, output, targets):
        error = (output.softmax(1)[:, 1].mean((1, 2)) - (targets == 1).double().mean((1, 2))).abs()
        return {"error": error, "half": error / 2}

    def facts(self, judged):
        return judged["error"].astype(np.float64)

    def score(self, facts, weights):
        return weights @ facts / weights.sum(1)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(-1)


@pytest.mark.parametrize("name", list(TASKS))
def test_tasks_are_found_by_their_names(name):
    task = find_task(name)
    assert task.name == name
    assert task.words.score
    assert len(task.columns) == len(set(task.columns))


def test_an_unknown_task_names_those_there_are():
    with pytest.raises(ValueError, match=r"no task is called 'segmentatoin': want segmentation or classification"):
        find_task("segmentatoin")


def test_words_of_titles_and_sentences():
    of_shares = Words(score="mIoU", unit=" %", long="mean IoU", of_class="IoU")
    assert (of_shares.title, of_shares.described, of_shares.class_described) == (
        "mIoU, %", "Mean IoU in per cent", "IoU in per cent",
    )  # fmt: skip
    plain = Words(score="error")
    assert (plain.title, plain.described) == ("error", "Error")


def test_a_task_need_not_say_more_than_its_score():
    task, judged = Brightness(), {"error": np.array([0.1, 0.3])}
    assert task.scores(judged) == {"error": pytest.approx(0.2)}
    assert task.classes(task.facts(judged)) == 0
    assert task.confusion(judged) is None
    assert task.blind(task.facts(judged)) is None
    with pytest.raises(ValueError, match="class_weights are for classes, and brightness has none"):
        task.check_weights((1.0,), tiny_data())


@pytest.mark.parametrize(
    ("judged", "fits"),
    [
        ({"error": np.ones(4)}, True),
        ({"error": np.ones(3)}, False),
        ({"error": np.ones(4), "half": np.ones((4, 2))}, True),
        ({"error": np.ones(4), "half": np.ones(2)}, False),
        ({"error": np.array([1.0, np.nan, 1.0, 1.0])}, False),
        ({"error": np.array(["a"] * 4)}, False),
        ({"error": np.float64(4)}, False),
        ({}, False),
    ],
)
def test_arrays_that_can_be_what_was_judged(judged, fits):
    assert Brightness().fits(judged, samples=4) == fits


def test_every_sample_is_judged_once_whatever_the_processes():
    """More processes than samples too: all must hold arrays of one kind to be added up."""
    data, network = tiny_data(val=3), tiny_network()
    for task in (Brightness(), Segmentation()):
        whole = evaluate(network, data, task)
        shares = [evaluate(network, data, task, batch_size=1, rank=rank, world=5) for rank in range(5)]
        for name, array in whole.items():
            assert [share[name].dtype for share in shares] == [array.dtype] * 5
            np.testing.assert_allclose(sum(share[name] for share in shares), array)


@pytest.mark.parametrize("size", [(9,), (4, 8, 8)])
def test_sequences_and_clips_are_learned_and_judged(size, tmp_path):
    """Three frames of three bands too: bands are axis 1, whatever follows."""

    class Classes(Brightness):
        def loss(self, output, targets, weights):
            return nn.functional.cross_entropy(output, targets, weights, reduction="sum"), targets.new_tensor(
                len(targets)
            )

        def judge(self, output, targets):
            return {"error": (output.argmax(1) != targets).double()}

    inputs = torch.randint(0, 256, (20, 3, *size), dtype=torch.uint8)
    labels = torch.arange(20) % 2
    inputs[labels == 1] //= 4
    samples = MemorySamples(inputs, labels, [str(i) for i in range(20)])
    data = Data("clips", samples, samples, ["bright", "dark"], 3, size, (0.5,) * 3, (0.25,) * 3, "Bright or dark?")
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[len(size)]
    torch.manual_seed(0)
    network = nn.Sequential(conv(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(2), Mean(), nn.Linear(8, 2))
    settings = Settings(steps=60, batch_size=10, lr=0.02, accelerator="cpu", eval_every=0)
    assert train(network, data, Classes(), settings, tmp_path, seed=0)["error"] < 0.2
    assert data.example(2).shape == (2, 3, *size)


def test_targets_that_are_numbers_stay_numbers():
    inputs, targets = torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.tensor([0.5, 1.5, -0.25, 2.0])
    samples = MemorySamples(inputs, targets, list("abcd"))
    data = Data("numbers", samples, samples, [], 3, (2, 2), (0.5,) * 3, (0.25,) * 3, "How much?")
    (_, got), *_ = data.val_batches(4)
    assert got.dtype == torch.float32
    assert got.equal(targets)


def test_inputs_may_be_changed_before_the_loss():
    """As adversarial training changes them: the seam is ``learn``."""

    class Attacked(Segmentation):
        def learn(self, network, inputs, targets, weights):
            inputs = inputs.detach().requires_grad_()
            total, _ = self.loss(network(inputs), targets, weights)
            (slope,) = torch.autograd.grad(total, inputs)
            return self.loss(network(inputs.detach() + 0.5 * slope.sign()), targets, weights)

    network, (inputs, targets) = tiny_network(batch_statistics=False), tiny_data().batch(0, 0, 4)
    plain, attacked = (task.learn(network, inputs, targets, None) for task in (Segmentation(), Attacked()))
    assert attacked[0] > plain[0]
    assert attacked[1] == plain[1]


def test_the_task_of_the_documents_works(tmp_path):
    text = (Path(__file__).parents[1] / "docs/tasks.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "(Task)" in block]
    names: dict = {}
    exec(compile(example, "docs/tasks.md", "exec"), names)
    task, data = names["Regression"](), tiny_data()
    settings = Settings(steps=2, batch_size=4, accelerator="cpu")
    result = train(names["build"](), data, task, settings, tmp_path, seed=0)
    with np.load(tmp_path / "outcomes.npz") as file:
        judged = dict(file)
    assert task.fits(judged, samples=len(data.val))
    assert result["mae"] == pytest.approx(judged["error"].mean())
    weights = np.array([[1.0] * 10, [0.0] * 9 + [10.0]])
    assert task.score(task.facts(judged), weights)[1] == pytest.approx(100 * judged["error"][-1])
