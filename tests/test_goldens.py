"""Every golden vector: outputs, input gradients, parameter gradients and buffers of the authors' own code.

``pytest tests/test_goldens.py --goldens DIR`` holds the library to another folder of the same form.
"""

from pathlib import Path

import pytest
import torch
from diagnostics.definitions import check_definitions
from torch import Tensor, nn
from translations import Built, Case, translation

from lookfar import weights

HERE = Path(__file__).parent / "goldens"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("--goldens") or HERE)
    paths = sorted(folder.rglob("*.npz"))
    if not paths:
        raise pytest.UsageError(f"no .npz under {folder}")
    metafunc.parametrize("path", paths, ids=[str(p.relative_to(folder).with_suffix("")) for p in paths])


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float64, 1.0), (torch.float32, 10.0)], ids=["float64", "float32"])
def test_equals_the_original(path: Path, dtype: torch.dtype, factor: float) -> None:
    case = Case(path)
    if any(key.startswith("s:") for key in case.arrays):
        check_definitions(path)  # numbers of maps, in float64 alone
        return
    translate = translation(case)
    if translate is None:
        pytest.skip(f"no translation for {case.cls} of {case.source.split(' ')[0]}")
    built = translate(case)
    if isinstance(built, nn.Module):
        built = Built(built, built)
    if built.skip:
        pytest.skip(built.skip)
    factor *= built.tolerance
    if built.block is not None and not built.loaded:
        weights.load(built.block, built.state if built.state is not None else case.state)
    for module in {id(m): m for m in (built.module, built.block) if isinstance(m, nn.Module)}.values():
        module.to(dtype)
        mode = case.meta.get("mode", "eval")
        module.train(mode.startswith("train"))
        if "BN in eval" in mode:
            for m in module.modules():
                if isinstance(m, nn.modules.batchnorm._BatchNorm):
                    m.eval()

    inputs = [x.to(dtype) if x.is_floating_point() else x for x in case.numbered("x")]
    want_gx, gy = case.numbered("gx"), case.numbered("gy")
    if want_gx or case.group("g"):
        inputs = [x.requires_grad_() if x.is_floating_point() else x for x in inputs]
    outputs = built.module(*inputs)
    outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
    want, tolerance = case.numbered("y"), 1e-5 * factor
    if "y_float64" in case.arrays:  # the original's float32 loses more: its gradients and our float32 to 1e-3
        want, tolerance = (
            ([torch.from_numpy(case.arrays["y_float64"])], 1e-6) if dtype == torch.float64 else (want, 1e-3)
        )
        factor = 20.0
    assert len(outputs) >= len(want)
    for n, (got, y) in enumerate(zip(outputs, want)):
        assert_close(f"y{n}", got, y, tolerance)

    if gy:
        loss = sum((y * g.to(dtype)).sum() for y, g in zip(outputs, gy))
        if isinstance(loss, Tensor) and loss.requires_grad:
            loss.backward()
    for n, gx in enumerate(want_gx):
        x = [x for x in inputs if x.is_floating_point()][n]
        assert_close(f"gx{n}", x.grad if x.grad is not None else torch.zeros_like(x), gx, 5e-5 * factor)

    if built.block is not None:
        _compare_parameters(case, built, factor)


def _compare_parameters(case: Case, built: Built, factor: float) -> None:
    block = built.block
    assert block is not None
    own = dict(block.named_parameters())
    wanted = _converted(block, case.group("g"), built)
    scale = max((float(g.abs().max()) for g in wanted.values() if g.numel()), default=0.0)
    statistics = {name for name, _ in block.named_buffers()}
    for name, g in wanted.items():
        if name in statistics:
            continue  # some originals differentiate their running averages too
        if name not in own or not g.numel():  # what does nothing may be left out
            assert not g.any(), f"the original's gradient of {name} has no parameter here"
            continue
        got = own[name].grad
        got = torch.zeros_like(own[name]) if got is None else got
        assert_close(f"g:{name}", got, g, 5e-5 * factor, scale=scale)
    state = block.state_dict()
    for name, value in _converted(block, case.group("after"), built).items():
        assert_close(f"after:{name}", state[name], value, 1e-5 * factor)


def _converted(block: nn.Module, values: dict[str, Tensor], built: Built) -> dict[str, Tensor]:
    renamed = {built.names[k]: v for k, v in values.items() if k in built.names}
    rest = {k: v for k, v in values.items() if k not in built.names}
    return renamed | (weights.convert(block, rest) if rest else {})


def assert_close(what: str, got: Tensor, want: Tensor, tolerance: float, scale: float | None = None) -> None:
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, want {tuple(want.shape)}"
    if not want.numel():
        return
    want = want.to(got.dtype)
    limit = tolerance * max(1.0, float(want.abs().max()) if scale is None else scale)
    error = float((got.detach() - want).abs().max())
    assert error <= limit, f"{what}: off by {error:.2e}, allowed {limit:.2e}"
