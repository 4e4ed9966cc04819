"""The federation: who asks, who answers, and what each side holds.

Imports `data`, `training` and what is below them; knows no framework.
"""
