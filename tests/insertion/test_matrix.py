"""The questions of `make insertion-table`, for a block of four families; the command asks them of every block."""

import pytest
from insertion.matrix import POSITIONS, QUESTIONS, ask

BLOCKS = ("nonlocal", "criss_cross", "squeeze_excitation", "expectation_maximization")
APART = {"loaded", "checkpointed", "onnx", "exported"}  # asked of fewer: seconds each


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("question", [question for question in QUESTIONS if question not in APART])
def test_question(question: str, block: str, position: str) -> None:
    ask(question, block, position)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("block", "position"), [("nonlocal", "last"), ("squeeze_excitation", "branch")])
@pytest.mark.parametrize("question", sorted(APART))
def test_slow_question(question: str, block: str, position: str) -> None:
    if question == "onnx":
        pytest.importorskip("onnxruntime", reason="ONNX needs `pip install lookfar[onnx]`")
    ask(question, block, position)
