"""Mathematics on tensors: each attention's definition (``*_reference``) beside its exact fast path."""

from lookfar.ops.embedded_gaussian import (
    embedded_gaussian,
    embedded_gaussian_reference,
    embedded_gaussian_weights,
)

__all__ = [
    "embedded_gaussian",
    "embedded_gaussian_reference",
    "embedded_gaussian_weights",
]
