"""Scores against torchmetrics, and what a class that never occurs does to them."""

import numpy as np
import pytest
import torch
from tiny_run import tiny_data, tiny_network

from lookfar.tasks import Segmentation, confusion
from lookfar.tasks.confusion import confusion_at_own_size, confusion_matrix
from lookfar.tasks.segmentation import scores
from lookfar.training import evaluate

TASK = Segmentation()


def random_labels(K: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    truth = torch.randint(0, K, (4, 9, 7))
    prediction = torch.where(torch.rand(truth.shape) < 0.6, truth, torch.randint(0, K, truth.shape))
    truth[torch.rand(truth.shape) < 0.2] = 255
    return truth, prediction


def test_one_matrix_an_image_with_truth_in_rows():
    truth = torch.tensor([[[0, 0, 1]], [[2, 255, 1]]])
    prediction = torch.tensor([[[0, 1, 1]], [[0, 2, 1]]])
    want = torch.tensor([[[1, 1, 0], [0, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0], [1, 0, 0]]])
    got = confusion_matrix(truth, prediction, 3)
    assert got.dtype == torch.int64
    assert got.equal(want)


def test_scores_equal_torchmetrics():
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    truth, prediction = random_labels()
    got = scores(confusion_matrix(truth, prediction, 5).numpy())
    iou = MulticlassJaccardIndex(5, average="none", ignore_index=255)(prediction, truth)
    accuracy = MulticlassAccuracy(5, average="micro", ignore_index=255)(prediction, truth)
    assert got["iou"] == pytest.approx(iou.tolist(), rel=1e-6)
    assert got["miou"] == pytest.approx(float(iou.mean()), rel=1e-6)
    assert got["accuracy"] == pytest.approx(float(accuracy), rel=1e-6)


def test_a_class_that_the_truth_does_not_show_is_absent_also_where_it_is_predicted():
    truth, prediction = torch.tensor([[[0, 0, 0, 255]]]), torch.tensor([[[0, 0, 1, 2]]])
    got = scores(confusion_matrix(truth, prediction, 3).numpy())
    assert got["iou"] == [pytest.approx(2 / 3), None, None]
    assert got["miou"] == pytest.approx(2 / 3)


def test_nothing_labelled_has_no_score():
    got = scores(confusion_matrix(torch.full((1, 2, 2), 255), torch.zeros(1, 2, 2, dtype=torch.long), 2).numpy())
    assert got == {"miou": None, "accuracy": None, "iou": [None, None]}


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (torch.full((1, 2, 2), 7), torch.zeros(1, 2, 2), "label 7 with 3 classes"),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), -1), "label -1"),
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 3), r"\(1, 2, 2\) and \(1, 2, 3\)"),
    ],
)
def test_wrong_labels_are_named(truth, prediction, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(truth, prediction, 3)


def test_scores_want_square_matrices():
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        scores(np.zeros((3, 4)))


def test_evaluate_does_not_depend_on_the_batch_or_the_processes_and_leaves_the_network_as_it_was():
    data, network = tiny_data(), tiny_network()
    network.norm.eval()  # frozen statistics inside a network in training
    whole = evaluate(network, data, TASK, batch_size=10)["confusion"]
    assert network.training
    assert not network.norm.training
    assert whole.shape == (10, 4, 4)
    assert whole[0].sum() == 64  # the first image has no ignored pixel
    np.testing.assert_array_equal(evaluate(network, data, TASK, batch_size=3)["confusion"], whole)
    shares = sum(evaluate(network, data, TASK, batch_size=2, rank=rank, world=3)["confusion"] for rank in range(3))
    np.testing.assert_array_equal(shares, whole)


@pytest.mark.parametrize("size", [(31, 50), (7, 5), (3, 4), (1, 1)])  # larger, as large, smaller
def test_predictions_brought_to_the_size_of_the_file(size, monkeypatch):
    logits = torch.randn(4, 7, 5, dtype=torch.float64)
    truth = torch.randint(0, 4, size)
    truth[torch.rand(size) < 0.2] = 255
    whole = torch.nn.functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)
    want = confusion_matrix(truth[None], whole.argmax(1), 4)[0]
    for strip in (1, 1000, 2**24):  # a row at a time, a few, all
        monkeypatch.setattr(confusion, "STRIP", strip)
        assert confusion_at_own_size(logits, truth).equal(want)


def test_a_large_image_with_many_classes_fits_into_memory():
    from lookfar.cost import peak_memory

    logits, truth = torch.randn(100, 16, 16), torch.zeros(1200, 1200, dtype=torch.uint8)  # 576 MB of logits in whole
    assert peak_memory(lambda: confusion_at_own_size(logits, truth), torch.device("cpu")) < 300e6


def test_samples_without_files_have_one_size():
    data, network = tiny_data(), tiny_network()
    np.testing.assert_array_equal(
        evaluate(network, data, TASK, score="original")["confusion"],
        evaluate(network, data, TASK)["confusion"],
    )
    with pytest.raises(ValueError, match=r"score must be resized or original, got .origin"):
        evaluate(network, data, TASK, score="origin")
