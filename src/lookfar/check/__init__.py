"""Our contract as a tool for anybody's module: what it promises, what breaks, and how."""

from lookfar.blocks._own import Target
from lookfar.check.apart import check_apart
from lookfar.check.loading import load
from lookfar.check.outcome import Outcome, Report, Row
from lookfar.check.run import PROMISES, Promise, check_module
from lookfar.check.show import print_report

__all__ = [
    "PROMISES",
    "Outcome",
    "Promise",
    "Report",
    "Row",
    "Target",
    "check_apart",
    "check_module",
    "load",
    "print_report",
]
