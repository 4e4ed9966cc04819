"""A Flower app that echoes."""
