"""One training loop for every study: any device, exact resuming, scores from one confusion matrix per image."""

from lookfar.training.environment import is_main_process
from lookfar.training.loop import TrainingError, train
from lookfar.training.metrics import confusion_matrix, evaluate, scores
from lookfar.training.settings import Settings

__all__ = ["Settings", "TrainingError", "confusion_matrix", "evaluate", "is_main_process", "scores", "train"]
