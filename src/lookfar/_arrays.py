"""Arrays in files, for the runs that write them and the studies that read them."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def read_arrays(path: Path) -> dict[str, "np.ndarray"]:
    """The arrays of an ``.npz``; none where it is missing or damaged."""
    import numpy as np

    try:
        # numpy leaves a file open whose archive is damaged
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return dict(file)
    except Exception:  # zip, zlib and numpy have an exception each for what is damaged
        return {}
