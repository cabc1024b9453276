"""Other people's checkpoints as safetensors, without executing anything in them."""
