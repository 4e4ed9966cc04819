"""Models: load any Hugging Face model, choose what trains, cut it in two."""
