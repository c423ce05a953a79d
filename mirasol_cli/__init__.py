"""Mirasol3B, open: video, sound and text in, text out."""

__version__ = "0.1.0"
