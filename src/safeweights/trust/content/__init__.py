"""What the bytes are: digests, block trees, and sources that verify what they read."""
