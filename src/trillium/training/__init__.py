"""Training: the one local loop, its optimisers, and the meters."""
