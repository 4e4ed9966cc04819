"""Training: the one local loop, its optimisers, and the meters of FLOPs, seconds and memory.

Imports `models`, `wire`, `tasks` and the ground.
"""
