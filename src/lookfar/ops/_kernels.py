"""Kernels of our own that are turned on: :func:`lookfar.ops.use_fused_kernels` fills this, ops look here."""

from types import ModuleType

KERNELS: dict[str, ModuleType] = {}  # op -> the module whose ``attend`` runs what it ``takes``
