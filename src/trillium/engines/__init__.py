"""Engines: carry bytes out and bring bytes back, and know nothing else."""
