"""Mathematics on tensors: each attention's definition (``*_reference``) beside its exact fast path."""

from lookfar.ops.attention import (
    attention,
    attention_reference,
    attention_weights,
)
from lookfar.ops.carafe import carafe, carafe_reference
from lookfar.ops.channel_attention import channel_attention, channel_attention_reference, channel_attention_weights
from lookfar.ops.concatenation import (
    concatenation,
    concatenation_reference,
    concatenation_weights,
)
from lookfar.ops.criss_cross import criss_cross, criss_cross_reference, criss_cross_weights
from lookfar.ops.deformable import (
    deformable_convolution,
    deformable_convolution_reference,
    deformable_rows,
    deformable_sum,
    deformable_sum_reference,
)
from lookfar.ops.disentangled import (
    multiplied_attention,
    multiplied_attention_reference,
    pairwise_attention,
    pairwise_attention_reference,
    unary_attention,
)
from lookfar.ops.dot_product import (
    dot_product,
    dot_product_reference,
    dot_product_weights,
)
from lookfar.ops.double_normalization import double_normalization, double_normalization_reference
from lookfar.ops.embedded_gaussian import (
    embedded_gaussian,
    embedded_gaussian_reference,
    embedded_gaussian_weights,
)
from lookfar.ops.expectation_maximization import (
    expectation_maximization,
    expectation_maximization_reference,
    expectation_maximization_weights,
)
from lookfar.ops.external_attention import (
    external_attention,
    external_attention_reference,
    external_attention_weights,
)
from lookfar.ops.filters import (
    bilateral,
    bilateral_reference,
    mean_shift,
    nonlocal_means,
    nonlocal_means_reference,
)
from lookfar.ops.neighborhood import (
    neighborhood,
    neighborhood_reference,
    neighborhood_rows,
    neighborhood_weights,
    relative_logits,
)
from lookfar.ops.nonlocal_operation import nonlocal_operation
from lookfar.ops.pointwise_spatial import (
    pointwise_spatial,
    pointwise_spatial_reference,
    pointwise_spatial_weights,
)
from lookfar.ops.reinforce import reinforce_loss
from lookfar.ops.relative_attention import (
    relative_attention,
    relative_attention_reference,
    relative_attention_weights,
)
from lookfar.ops.sampling import affine_sample, affine_sample_reference, glimpse_sensor, glimpse_sensor_reference
from lookfar.ops.sparse_attention import sparse_attention, sparse_attention_reference, sparse_attention_weights

__all__ = [
    "affine_sample",
    "affine_sample_reference",
    "attention",
    "attention_reference",
    "attention_weights",
    "bilateral",
    "bilateral_reference",
    "carafe",
    "carafe_reference",
    "channel_attention",
    "channel_attention_reference",
    "channel_attention_weights",
    "concatenation",
    "concatenation_reference",
    "concatenation_weights",
    "criss_cross",
    "criss_cross_reference",
    "criss_cross_weights",
    "deformable_convolution",
    "deformable_convolution_reference",
    "deformable_rows",
    "deformable_sum",
    "deformable_sum_reference",
    "dot_product",
    "dot_product_reference",
    "dot_product_weights",
    "double_normalization",
    "double_normalization_reference",
    "embedded_gaussian",
    "embedded_gaussian_reference",
    "embedded_gaussian_weights",
    "expectation_maximization",
    "expectation_maximization_reference",
    "expectation_maximization_weights",
    "external_attention",
    "external_attention_reference",
    "external_attention_weights",
    "glimpse_sensor",
    "glimpse_sensor_reference",
    "mean_shift",
    "multiplied_attention",
    "multiplied_attention_reference",
    "neighborhood",
    "neighborhood_reference",
    "neighborhood_rows",
    "neighborhood_weights",
    "nonlocal_means",
    "nonlocal_means_reference",
    "nonlocal_operation",
    "pairwise_attention",
    "pairwise_attention_reference",
    "pointwise_spatial",
    "pointwise_spatial_reference",
    "pointwise_spatial_weights",
    "reinforce_loss",
    "relative_attention",
    "relative_attention_reference",
    "relative_attention_weights",
    "relative_logits",
    "sparse_attention",
    "sparse_attention_reference",
    "sparse_attention_weights",
    "unary_attention",
]
from lookfar.ops.adaptive_average import adaptive_average, adaptive_average_reference  # TEMP
