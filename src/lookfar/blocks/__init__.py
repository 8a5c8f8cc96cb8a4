"""Attention blocks: one file a system; a feature map comes in, a feature map goes out."""

from lookfar.blocks._base import BlockInfo, block_info, create_block, list_blocks, parse_block, sample_inputs
from lookfar.blocks._token_norm import TokenBatchNorm

__all__ = ["BlockInfo", "TokenBatchNorm", "block_info", "create_block", "list_blocks", "parse_block", "sample_inputs"]
