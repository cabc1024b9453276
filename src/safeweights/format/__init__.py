"""The safetensors format, without I/O: rules, reading and writing of headers, index expressions."""
