"""Runs: build, go on, compare, keep."""
