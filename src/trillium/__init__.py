"""Trillium: fine-tune language models on data that may not be moved."""

__version__ = "0.1.0"
