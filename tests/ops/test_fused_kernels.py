"""The switch of the fused kernels, a run of their tests in Triton's interpreter, and their compilation for cards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lookfar.ops import neighborhood, use_fused_kernels
from lookfar.ops._kernels import KERNELS

WITHOUT = """
import sys
sys.modules["triton"] = None
import torch
from lookfar import ops
x = torch.randn(1, 1, 2, 3, 3)
assert ops.neighborhood(x, x, x, kernel_size=3).shape == x.shape
try:
    ops.use_fused_kernels()
except ImportError as error:
    print(error)
assert ops.neighborhood(x, x, x, kernel_size=3).shape == x.shape
"""


def test_off_until_asked():
    assert not KERNELS


def test_without_triton():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fused kernels need Triton, which comes with torch's CUDA builds for Linux\n"


def test_on_the_cpu_nothing_changes():
    pytest.importorskip("triton")
    x = torch.randn(1, 1, 2, 3, 3, requires_grad=True)
    use_fused_kernels()
    try:
        assert "lookfar" not in type(neighborhood(x, x, x, kernel_size=3).grad_fn).__name__
    finally:
        use_fused_kernels(False)


@pytest.mark.slow
def test_in_the_interpreter():
    """In a process of its own, since Triton looks for the variable when it is imported."""
    pytest.importorskip("triton")
    tests = Path(__file__).with_name("interpreted_kernels.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tests)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "border", "dtype"), [
    ("_forward", "mask", "fp32"), ("_over_queries", "zeros", "bf16"), ("_over_keys", "clamped", "fp16"),
])  # fmt: skip
def test_compiles_for_a_card(name, border, dtype, tmp_path, monkeypatch):
    """To machine code, which the interpreter cannot answer for: types, shapes, and what its language lacks."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lookfar.ops import _triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(_triton, name).fn
    window = {"KH": 3, "KW": 5, "SH": 1, "SW": 1, "LH": 1, "LW": 1}
    constants = {
        "D": 3,
        "E": 5,
        "DD": 4,
        "EE": 8,
        **window,
        "BORDER": border,
        "BIAS": True,
        "LEARNT": True,
        "BLOCK": 32,
    }
    constants = {n: c for n, c in constants.items() if n in kernel.arg_names}
    kinds = {"scale": "fp32", "outside": "fp32", **dict.fromkeys(["LSE", "DELTA", "DB"], "*fp32")}
    kinds |= dict.fromkeys(("Q", "K", "V", "B", "Y", "G", "DQ", "DK", "DV"), f"*{dtype}")
    signature = {n: "constexpr" if n in constants else kinds.get(n, "i32") for n in kernel.arg_names}
    made = triton.compile(ASTSource(kernel, signature, constexprs=constants), target=GPUTarget("cuda", 90, 32))
    assert made.asm["cubin"]
