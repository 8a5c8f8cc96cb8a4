"""Networks put to use: opened by one word, tried on images, judged on data, trained on data."""

from lookfar.use.evaluating import Evaluation, evaluate
from lookfar.use.files import predict_files
from lookfar.use.opening import Opened, open_network
from lookfar.use.reading import read_image
from lookfar.use.training import PRESETS, Trained, train_network

__all__ = [
    "PRESETS",
    "Evaluation",
    "Opened",
    "Trained",
    "evaluate",
    "open_network",
    "predict_files",
    "read_image",
    "train_network",
]
