"""What the bytes of a file are: digests, block trees, and sources that verify what they read."""
