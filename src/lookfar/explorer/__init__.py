"""A page on this computer that shows where networks look, for images of one's own: ``lookfar explore``."""

from lookfar.explorer.pictures import Picture, read_picture
from lookfar.explorer.server import Server
from lookfar.explorer.subjects import Subject, open_subject

__all__ = ["Picture", "Server", "Subject", "open_subject", "read_picture"]
