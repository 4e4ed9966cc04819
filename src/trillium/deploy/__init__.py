"""Deployment: keys, the app, and the processes of a federation across machines.

Imports `engines`, `experiment` and what is below them.
"""
