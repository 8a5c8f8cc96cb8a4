"""A first look at many blocks and places: each alone, in a frozen network, for a few steps."""

from lookfar.scan.scanning import Row, Scan, scan

__all__ = ["Row", "Scan", "scan"]
