"""safeweights: the safetensors format in pure Python."""

__version__ = "0.1.0"
