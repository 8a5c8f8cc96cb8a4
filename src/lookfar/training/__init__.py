"""One training loop for every study and every task: any device, exact resuming, what is judged kept for each sample."""

from lookfar.training.environment import is_main_process
from lookfar.training.evaluation import evaluate
from lookfar.training.loop import TrainingError, train
from lookfar.training.settings import Settings

__all__ = ["Settings", "TrainingError", "evaluate", "is_main_process", "train"]
