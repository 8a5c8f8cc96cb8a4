"""Whole networks: hosts that blocks are put into and compared in."""

from lookfar.networks.control import ConvControl, control_of
from lookfar.networks.segmentation import Segmenter, build_network, resolve_place

__all__ = ["ConvControl", "Segmenter", "build_network", "control_of", "resolve_place"]
