"""The experiment tree: YAML and `key=value` words become one checked object; recipes and sweeps.

Imports `frameworks` and what is below them.
"""
