"""Questions asked of networks from outside: where blocks look, whether their maps depend on the query."""

from lookfar.diagnostics.maps import (
    attention_maps,
    key_size,
    labels_at,
    map_similarity,
    own_class_share,
    query_independent_part,
    why_no_maps,
)
from lookfar.diagnostics.samples import choose_images, collect_samples

__all__ = [
    "attention_maps",
    "choose_images",
    "collect_samples",
    "key_size",
    "labels_at",
    "map_similarity",
    "own_class_share",
    "query_independent_part",
    "why_no_maps",
]
