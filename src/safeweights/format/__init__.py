"""The safetensors format, without I/O: its rules, its headers read and written, its index expressions."""
