"""Pickles executed symbolically: nothing that a stream names is imported or called."""
