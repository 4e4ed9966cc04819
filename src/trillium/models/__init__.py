"""Models: load any Hugging Face model, choose what trains in it, cut it in two.

Imports `wire`, `tasks` and the ground.
"""
