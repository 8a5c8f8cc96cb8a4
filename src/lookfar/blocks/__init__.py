"""Attention blocks: one file a system; a feature map comes in, a feature map goes out."""

from lookfar.blocks._base import BlockInfo, block_info, create_block, list_blocks, parse_block, sample_inputs

__all__ = ["BlockInfo", "block_info", "create_block", "list_blocks", "parse_block", "sample_inputs"]
