"""Questions asked of networks from outside: where blocks look, whether their maps depend on the query."""

from lookfar.diagnostics.block_ablations import Ablations, ablations
from lookfar.diagnostics.block_statistics import Statistic, Statistics, statistics
from lookfar.diagnostics.decomposition import Decomposition, decompose
from lookfar.diagnostics.finding import blocks_of
from lookfar.diagnostics.looking import Look, Looks, look
from lookfar.diagnostics.maps import (
    attention_maps,
    key_size,
    labels_at,
    map_similarity,
    own_class_share,
    query_independent_part,
    query_size,
    why_no_maps,
)
from lookfar.diagnostics.samples import choose_images, collect_samples
from lookfar.diagnostics.seeing import Seen, see
from lookfar.diagnostics.spread import rollout

__all__ = [
    "Ablations",
    "Decomposition",
    "Look",
    "Looks",
    "Seen",
    "Statistic",
    "Statistics",
    "ablations",
    "attention_maps",
    "blocks_of",
    "choose_images",
    "collect_samples",
    "decompose",
    "key_size",
    "labels_at",
    "look",
    "map_similarity",
    "own_class_share",
    "query_independent_part",
    "query_size",
    "rollout",
    "see",
    "statistics",
    "why_no_maps",
]
