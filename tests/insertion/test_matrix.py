"""The questions of `make insertion-table`, for four blocks of each family; the command asks them of every block."""

import pytest
from insertion.matrix import POSITIONS, QUESTIONS, TOGETHER, ask

from lookfar.blocks import block_info, list_blocks

FAMILIES = sorted({block_info(name).family for name in list_blocks(kind="context")})
OF_EACH = [
    name
    for family in FAMILIES
    for name in [name for name in list_blocks(kind="context") if block_info(name).family == family][:4]
]
BLOCKS = ("nonlocal", "criss_cross", "squeeze_excitation", "expectation_maximization")
PAIRS = [(block, position) for block in BLOCKS for position in POSITIONS]
APART = {"checkpointed", "onnx", "exported"}  # asked of fewer: seconds each

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("block", sorted({*OF_EACH, *BLOCKS}))
@pytest.mark.parametrize("question", [question for question in QUESTIONS if question not in APART | TOGETHER.keys()])
def test_question(question: str, block: str, position: str) -> None:
    ask(question, block, position)


@pytest.mark.slow
@pytest.mark.parametrize("question", TOGETHER)
def test_question_to_other_processes(question: str) -> None:
    """Of all at once: to start the processes takes much longer than to answer."""
    told = dict(zip(PAIRS, TOGETHER[question](PAIRS)))
    assert told == dict.fromkeys(PAIRS, "yes")


@pytest.mark.slow
@pytest.mark.parametrize(("block", "position"), [("nonlocal", "last"), ("squeeze_excitation", "branch")])
@pytest.mark.parametrize("question", sorted(APART))
def test_slow_question(question: str, block: str, position: str) -> None:
    if question == "onnx":
        pytest.importorskip("onnxruntime", reason="ONNX needs `pip install lookfar[onnx]`")
    ask(question, block, position)
