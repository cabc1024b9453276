"""One reader for each foreign format."""
