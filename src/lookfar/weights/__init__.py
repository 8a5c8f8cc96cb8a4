"""Published weights into our parameter names: the authors' keys in, a strict load out. docs/weights.md says how."""

from lookfar.weights.files import read
from lookfar.weights.fitting import load
from lookfar.weights.names import State, convert, from_inplace_abn, rename

__all__ = ["State", "convert", "from_inplace_abn", "load", "read", "rename"]
