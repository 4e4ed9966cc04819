"""Engines: carry bytes out and bring bytes back, and know nothing else.

Imports `experiment` and what is below it, and is the only room that imports Flower and Ray.
"""
