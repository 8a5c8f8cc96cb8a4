"""What a scan says of itself."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from lookfar.scan.guide import STRONG, Guide, guide, warning


def test_weak_guides_say_so():
    assert "Weak guide" in warning(None)
    assert "Weak guide" in warning(Guide(0.59, 0.3, 0.8, 8, ("a", "b")))
    assert "may be a weak guide" in warning(Guide(0.7, 0.3, 0.9, 8, ("a",)))
    assert "weak guide" not in warning(Guide(0.8, 0.65, 0.9, 8, ("a",)))


def test_what_was_measured_comes_along():
    known = guide()
    assert known is not None
    assert known.pairs >= 8
    assert known.low <= known.rho <= known.high <= 1
    assert 0 < STRONG < 1


def test_rho_is_that_of_ranks():
    path = Path(__file__).parents[2] / "benchmarks/scan.py"
    spec = importlib.util.spec_from_file_location("scan_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.spearman(np.array([[1.0, 10.0], [2.0, 100.0], [3.0, 1000.0]])) == pytest.approx(1)
    assert module.spearman(np.array([[1.0, 3.0], [2.0, 2.0], [2.0, 1.0]])) == pytest.approx(-np.sqrt(3) / 2)
    rho, draws = module.correlated([(1.0, 1.0), (2.0, 3.0), (3.0, 2.0), (4.0, 4.0)])
    assert rho == pytest.approx(0.8)
    assert np.nanmax(draws) <= 1 + 1e-12
    assert np.nanstd(draws) > 0
