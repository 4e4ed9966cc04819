"""Data: where rows come from, how they are divided among clients, what is held back for test.

Imports `training`, `models`, `wire`, `tasks` and the ground.
"""
