"""Deployment: what a federation across machines needs before it can run."""
