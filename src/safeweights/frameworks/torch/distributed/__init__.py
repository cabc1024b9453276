"""Checkpoints that many ranks save and load together (torch.distributed.checkpoint)."""
