"""The experiment tree."""
