"""Whole networks: hosts that blocks are put into and compared in."""

from lookfar.networks.cgnet import CGNet
from lookfar.networks.checkpoints import Recognised, from_checkpoint, from_pretrained
from lookfar.networks.classification import (
    Classifier,
    OwnClassifier,
    build_classifier,
    build_own_classifier,
    crop_pct_of,
)
from lookfar.networks.control import ConvControl, control_of
from lookfar.networks.creating import create_network, list_networks
from lookfar.networks.exporting import Exported, export
from lookfar.networks.optimizing import optimize
from lookfar.networks.own import OwnHost, build_own
from lookfar.networks.predicting import predict
from lookfar.networks.preprocessing import Inference, Preprocessing
from lookfar.networks.published import Outputs, SegmentationNetwork
from lookfar.networks.segmentation import Segmenter, build_network, resolve_place

__all__ = [
    "CGNet",
    "Classifier",
    "ConvControl",
    "Exported",
    "Inference",
    "Outputs",
    "OwnClassifier",
    "OwnHost",
    "Preprocessing",
    "Recognised",
    "SegmentationNetwork",
    "Segmenter",
    "build_classifier",
    "build_network",
    "build_own",
    "build_own_classifier",
    "control_of",
    "create_network",
    "crop_pct_of",
    "export",
    "from_checkpoint",
    "from_pretrained",
    "list_networks",
    "optimize",
    "predict",
    "resolve_place",
]
