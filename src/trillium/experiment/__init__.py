"""Runs: one run, many runs, the run folder, and what is left when a run has ended.

Imports `plan`, `config` and what is below them.
"""
