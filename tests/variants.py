"""Options under which the promises of :mod:`test_every_block` are asked again, beside each block's defaults.

One row a block: dictionaries of options; ``channels`` may stand among them where 16 do not fit.
"""

from typing import Any

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "position_attention": [{"reduction": 1}],
}

# blocks that are exported at one size only, and why; all others are exported with free height and width
STATIC_EXPORT: dict[str, str] = {}
