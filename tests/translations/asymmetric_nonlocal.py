"""ANN: MendelXu/ANN."""

from dataclasses import replace

from lookfar import create_block
from translations import Built, Case, translates


def _module(case: Case, **options) -> Built:
    a = case.args
    if list(a.get("sizes", [1])) != [1]:
        return Built(None, skip=f"the original fails with sizes={a['sizes']}")  # type: ignore[arg-type]
    block = create_block(
        "asymmetric_nonlocal",
        inner_channels=a["key_channels"],
        value_channels=a["value_channels"],
        out_channels=a["out_channels"],
        bins=a.get("psp_size", (1, 3, 6, 8)),
        dropout=a.get("dropout", 0.05),
        form="published",
        **options,
    )
    return Built(block, block)


@translates("APNB")
def pyramid(case: Case) -> Built:
    return _module(case, channels=case.args["in_channels"], mode="pyramid")


@translates("AFNB")
def fusion(case: Case) -> Built:
    a = case.args
    built = _module(case, channels=a["high_in_channels"], low_channels=a["low_in_channels"], mode="fusion")
    return replace(built, module=lambda low, high: built.block(high, low)) if built.block else built
