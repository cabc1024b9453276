"""What must be true before a model is loaded, and whether it is."""
