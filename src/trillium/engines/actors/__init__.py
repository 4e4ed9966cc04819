"""The Ray engine: what runs here, what runs in its workers, and Ray itself."""
