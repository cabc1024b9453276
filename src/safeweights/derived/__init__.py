"""Tensors with new values: casting, strided views, dense forms of sparse and quantised tensors."""
