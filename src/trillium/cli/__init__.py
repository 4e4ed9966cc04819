"""The command line: its verbs parse first, and import torch only once they need it.

Imports every other room; none imports it.
"""
