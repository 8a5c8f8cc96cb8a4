"""Put a block into an existing network: output unchanged, checkpoints of the host still load, and it can be undone."""

from lookfar.insertion.description import describe
from lookfar.insertion.hanging import Gated, Insertion, block_name, insertions, remove, switched_off
from lookfar.insertion.inserting import insert

__all__ = ["Gated", "Insertion", "block_name", "describe", "insert", "insertions", "remove", "switched_off"]
