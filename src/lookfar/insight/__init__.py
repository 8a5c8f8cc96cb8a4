"""Looking at trained networks: what their blocks need, and where they look."""

from lookfar.insight.inspecting import Inspected, inspect_subject
from lookfar.insight.subjects import Subject, find_subjects

__all__ = ["Inspected", "Subject", "find_subjects", "inspect_subject"]
