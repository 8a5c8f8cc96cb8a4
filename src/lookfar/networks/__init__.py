"""Whole networks: hosts that blocks are put into and compared in."""

from lookfar.networks.control import ConvControl, control_of
from lookfar.networks.own import OwnHost, build_own
from lookfar.networks.segmentation import Segmenter, build_network, resolve_place

__all__ = ["ConvControl", "OwnHost", "Segmenter", "build_network", "build_own", "control_of", "resolve_place"]
