"""Options under which the promises of :mod:`test_every_block` are asked again, beside each block's defaults.

One row a block: dictionaries of options; ``channels`` may stand among them where 16 do not fit.
"""

from typing import Any

from torch import nn

from lookfar.blocks import TokenBatchNorm

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "nonlocal": [
        {"mode": "gaussian", "heads": 2, "subsample": 2, "norm_layer": None},
        {"mode": "dot_product", "subsample": 2, "subsample_order": "before", "heads": 2, "bias": False},
        {"mode": "concatenation", "subsample": 2, "heads": 2},
        {"normalization": "double", "projections": "around", "dims": 1, "subsample": 2},
        {"normalization": "sigmoid", "share_query_key": True, "scale": 2.0, "dims": 3, "subsample": 2},
    ],
    "global_context": [
        {"reduction": 4, "pooling": "avg"},
        {"inner_channels": 5, "fusion": "both", "zero_init": False},
        {"dims": 1, "reduction": 4},
        {"dims": 3, "inner_channels": 5},
    ],
    "simplified_nonlocal": [
        {"inner_channels": 5, "subsample": 2, "norm_layer": nn.BatchNorm2d},
        {"inner_channels": 6, "heads": 3, "subsample": 2, "project_bias": True, "norm_layer": True},
        {"dims": 1, "heads": 2},
        {"dims": 3, "subsample": 2, "norm_layer": nn.BatchNorm2d},
    ],
    "disentangled_nonlocal": [
        {"terms": "unary", "subsample": 2, "value_channels": 6, "heads": 2},
        {"combine": "multiply", "unary": "both", "scale": True, "norm_layer": nn.BatchNorm2d},
        {"variant": "mmseg", "mode": "concatenation", "heads": 2},
        {"whiten": ("layer_std", "norm_affine"), "unary": "key", "share_query_key": True, "subsample": 2},
        {"projections": "around", "heads": 2, "normalization": "double", "unary": "both"},
        {"mode": "dot_product", "heads": 2, "normalization": "l1", "whiten": "channel_std", "value_channels": 6},
        {"dims": 1, "terms": "unary", "heads": 2, "value_channels": 6},
        {"dims": 3, "subsample": 2, "norm_layer": nn.BatchNorm2d},
    ],
    "position_attention": [
        {"reduction": 1, "heads": 2, "share_query_key": True, "normalization": "none"},
        {"normalization": "double"},
        {"projections": "around", "heads": 2, "reduction": 4, "normalization": "l1", "dims": 1},
        {"dims": 3},
    ],
    "dual_attention": [
        {"projections": "around", "heads": 2, "normalization": "sigmoid", "inner_channels": 6},
        {"dims": 1},
        {"dims": 3},
    ],
    "double_attention": [
        {"nodes": 3, "inner_channels": 5, "norm_layer": nn.BatchNorm2d},
        {"dims": 3, "share_query_key": True, "normalization": "double", "heads": 2},
        {"dims": 1},
    ],
    "channel_attention": [{"similarity": "most", "scale": True}, {"dims": 1}, {"dims": 3}],
    "glore": [
        {"normalize": True, "dims": 1, "heads": 2},
        {"reasoning": False},
        {"dims": 3, "norm_layer": nn.BatchNorm2d},
    ],
    "compact_generalized_nonlocal": [
        {"groups": 4, "scale": True, "norm_layer": nn.BatchNorm2d, "share_query_key": True},
        {"groups": 2, "mode": "gaussian", "gamma": 0.1, "decay": True},
        {"dims": 1, "groups": 4},
        {"dims": 3, "groups": 2, "mode": "gaussian", "gamma": 0.1, "norm_layer": nn.BatchNorm2d},
    ],
    "hamburger": [
        {"bases": 3, "variant": "v2", "gradient": "full", "inner_channels": 12, "heads": 2},
        {"bases": 3, "variant": "v2plus", "method": "cd", "inner_channels": 8, "squeeze": 2},
        {"bases": 3, "method": "vq", "inverse_temperature": 2.0, "gradient": "full", "norm_layer": None},
        {"bases": 3, "spatial": False, "heads": 2, "gradient": "full"},
        {"reasoning": False},
        {"dims": 1, "bases": 3},
        {"dims": 3, "bases": 3, "variant": "v2"},
    ],
    "graph_projection": [
        {"nodes": 3, "inner_channels": 5, "reasoning": False, "scale": True},
        {"dims": 1, "nodes": (2, 3)},
        {"dims": 3, "nodes": 3},
    ],
    "dynamic_message_passing": [
        {"variant": "fast", "groups": 2, "dilation": (1, 3), "reduction": 2, "affinity": "own"},
        {"groups": 2, "dilation": 2, "walks": False, "affinity": "none", "reduction": 2, "zero_init": False},
    ],
    "symbolic_graph_reasoning": [
        {"nodes": 5, "inner_channels": 7, "mapping": m, "reasoning": m != "nodes", "normalize": m == "product"}
        | ({"dims": 3} if m == "product" else {})
        for m in ("pixels", "nodes", "product")
    ],
    "adaptive_context": [{"bins": (1, 3), "fusion": False, "norm_layer": None, "act_layer": nn.GELU}],
    "pyramid_pooling": [{"bins": (1, 4), "inner_channels": 3, "align_corners": False}],
    "atrous_pyramid": [{"dilations": (1, 2, 4), "fuse_kernel": 3}],
    "asymmetric_nonlocal": [
        {
            "normalization": "none",
            "heads": 2,
            "mode": "fusion",
            "bins": (1, 2),
            "inner_channels": 4,
            "value_channels": 6,
            "bias": False,
        },
        {"projections": "around", "heads": 2, "normalization": "double"},
    ],
    "object_contextual": [
        {"heads": 2, "subsample": 2, "inverse_temperature": 2.0, "out_channels": 6},
        {"regions": "learned", "heads": 2},
        {"regions": "learned", "nodes": 3, "dilations": (1, 2), "reasoning": False},
        {"dilations": (1, 2), "bias": False, "reasoning": False},
        {"dims": 1, "subsample": 2},
        {"dims": 3, "subsample": 2},
    ],
    "pointwise_spatial_attention": [
        {"mode": "distribute", "shrink_factor": 1, "mask_size": (5, 4), "normalization": "none"},
        {"mask_size": (9, 7), "variant": "mmseg", "shrink_factor": 1, "normalization_factor": None},
    ],
    "object_context": [
        {
            "mode": "pyramid",
            "sizes": (1, 3),
            "variant": "openseg",
            "out_channels": 6,
            "heads": 2,
            "normalization": "double",
        },
        {"mode": "asp", "dilations": (1, 2), "sizes": (2, 1), "branch_channels": 6},
        {"heads": 2, "projections": "around", "normalization": "none"},
        {"dims": 1},
        {"dims": 3, "variant": "openseg", "mode": "context"},
    ],
    "feature_denoising": [
        {"filter": "dot", "embed": False, "heads": 2},
        {"filter": "bilateral_gaussian", "inner_channels": 6, "heads": 2, "share_query_key": True},
        {"filter": "mean", "kernel_size": 5},
        {"filter": "median"},
        {"filter": "none", "dims": 1},
        {"filter": "dot", "dims": 3, "heads": 2},
    ],
    "relation": [
        {"heads": 2, "inner_channels": 6, "position_channels": 16, "share_query_key": True},
        {"heads": 4, "gated": False},
    ],
    "generalized_attention": [
        {"terms": "0010", "heads": 3, "q_stride": 2},
        {"terms": "0101", "heads": 2, "kv_stride": 1, "spatial_range": 1, "position_channels": 8},
        {"terms": "1010", "heads": 2, "share_query_key": True},
        {"heads": 2, "projections": "around"},
    ],
    "interlaced": [
        {"down_factor": (3, 2), "heads": 2, "share_query_key": True, "value_bias": True},
        {"down_factor": [(2, 2), (4, 3)], "inner_channels": 4, "value_channels": 6, "normalization": "l1"},
        {"down_factor": (2, 2), "heads": 2, "projections": "around", "normalization": "double"},
    ],
    "latent_gnn": [
        {"nodes": (3, 5), "graph_convolution": True, "normalize": True},
        {"nodes": 4, "symmetric": True, "reasoning": False},
        {"dims": 1, "nodes": 4, "heads": 2},
        {"dims": 3, "nodes": 4, "normalize": True},
    ],
    "local_attention": [
        {"border": "clamped", "kernel_size": 3, "heads": 2, "projections": "around"},
        {"border": "zeros", "normalization": "none", "kernel_size": 3, "share_query_key": True},
    ],
    "atrous_attention": [{"dilation": 2, "heads": 2, "share_query_key": True, "normalization": "l1"}],
    "sparse_attention": [
        {"kernel_size": 3, "dilation": 3, "projections": "around"},
        {"dilation": 2, "heads": 2, "normalization": "none"},
    ],
    "local_relation": [
        {"similarity": "product", "groups": 4, "kernel_size": 3, "dilation": 2, "out_channels": 6},
        {"similarity": "absolute", "kernel_size": 3, "prior": False, "scale": 0.5, "share_query_key": True},
        {"similarity": "product", "kernel_size": 3, "stride": 2, "normalization": "none", "share_query_key": True},
    ],
    "interleaved_group_convolution": [
        {"groups": 2, "out_channels": 24, "kernel_size": 5, "stride": 2, "bias": True},
        {"groups": 4, "dilation": 2, "norm_layer": nn.BatchNorm2d, "act_layer": nn.ReLU},
    ],
    "stand_alone": [
        {"heads": 2, "border": "zeros", "shared": True, "kernel_size": 3, "out_channels": 12, "content": False},
        {"border": "clamped", "relative": False, "normalization": "none", "kernel_size": 3, "share_query_key": True},
        {"heads": 2, "projections": "around", "kernel_size": 3, "stride": 2, "dilation": 2},
    ],
    "stand_alone_stem": [
        {"kernel_size": 3, "heads": 2, "mixtures": 2, "out_channels": 12, "embed_channels": 5},
        {"kernel_size": 2, "heads": 2, "share_query_key": True, "normalization": "double"},
    ],
    "attention_augmented": [
        {"heads": 2, "key_channels": 6, "value_channels": 4, "out_channels": 10, "size": (7, 5), "kernel_size": 1},
        {"heads": 2, "value_channels": 16, "relative": False, "share_query_key": True, "normalization": "double"},
        {"heads": 2, "key_channels": 6, "value_channels": 4, "projections": "around", "normalization": "l1"},
        {"heads": 2, "key_channels": 6, "value_channels": 4, "stride": 2, "pool": 2, "size": (7, 5)},
    ],
    "carafe": [
        {"scale_factor": 3, "kernel_size": 3, "groups": 2, "encoder_dilation": 2, "compressed_channels": 5},
    ],
    "criss_cross": [
        {"recurrence": 1, "heads": 2, "reduction": 4, "share_query_key": True, "zero_init": False},
        {"projections": "around", "reduction": 4, "normalization": "sigmoid"},
        {"dims": 3, "recurrence": 1},
    ],
    "expectation_maximization": [
        {"bases": 5, "heads": 2, "variant": "mmseg", "gradient": "full"},
        {"bases": 3, "iterations": 1, "eval_iterations": 1, "gradient": "last", "final_act": True, "zero_init": False},
        {"bases": 3, "heads": 2, "gradient": "last", "reasoning": False},
        {"dims": 1, "bases": 3, "gradient": "full"},
        {"dims": 3, "bases": 3},
    ],
    "external_attention": [
        {"bases": 5, "normalization": "softmax", "final_act": True, "zero_init": False},
        {"dims": 1, "bases": 5, "heads": 2},
        {"dims": 3, "bases": 5},
    ],
    "multi_head_external": [
        {"heads": 2, "expansion": 1, "bases": 5, "out_channels": 6, "key_bias": False},
        {"heads": 4, "bases": 3, "normalization": "softmax"},
    ],
    "self_attention": [
        {"heads": 2, "bias": True, "normalization": "double", "scale": 0.5},
        {"heads": 2, "out_channels": 6, "bias": True, "share_query_key": True},
        {"heads": 2, "projections": "around", "normalization": "none"},
    ],
    "token_stage": [
        {"mixer": "external", "heads": 2, "bases": 5, "mlp_ratio": 2.0, "act_layer": nn.SiLU},
        {"mixer": "external", "out_channels": 6, "bases": 5},
        {"out_channels": 6, "bias": True, "normalization": "double"},
        {"mixer": "performer", "out_channels": 6, "norm_layer": TokenBatchNorm},
        {"mixer": "nonlocal(mode=gaussian, norm_layer=None)", "heads": 2},
        {"mixer": "hamburger(gradient=full)", "heads": 2, "bases": 3},
    ],
    "performer": [{"heads": 2, "out_channels": 6, "features": 5, "bias": False}],
    "offset_attention": [
        {"share_query_key": False, "normalization": "softmax", "reduction": 2},
        {"projections": "around", "normalization": "none"},
    ],
    "point_stage": [{"positions": True, "recurrence": 2}],
    "spatial_transformer": [
        {"mode": "attention", "form": "published", "inner_channels": 4, "zero_init": False},
        {"mode": "projective", "zero_init": False},
        {"mode": "thin_plate", "inner_channels": 4},
    ],
    "glimpse": [{"kernel_size": 3, "scales": 2, "out_channels": 6, "inner_channels": 5}],
    "hard_attention": [
        {"selection": "items", "hard": False},
        {"selection": "place", "kernel_size": 3},
        {"selection": "place", "kernel_size": 3, "hard": False},
    ],
    "squeeze_excitation": [
        {"bias": False, "reduction": 4, "pooling": "max", "gate": "tanh"},
        {"dims": 1},
        {"dims": 3, "pooling": "max"},
    ],
    "cbam": [{"pooling": ("avg", "max", "lp", "lse"), "spatial_gate": False}, {"order": "parallel"}],
}

# blocks that are exported at one size only, and why; all others are exported with free height and width
STATIC_EXPORT: dict[str, str] = {"stand_alone_stem": "its blocks must divide the map"}

# maps, and a factor on them, under which every parameter of a block matters, where the usual ones are too tame: groups
# of one position, or no ReLU that is on here and off there
WIDE: dict[str, tuple[tuple[int, ...] | None, float]] = {"interlaced": ((19, 18), 8.0)}
