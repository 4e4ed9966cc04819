"""The wire: messages, what they weigh, and how they become bytes.

Imports the ground alone: `component`, `errors`, `files`, `rng`, `quiet`.
"""
