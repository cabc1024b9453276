"""PyTorch: tensors, modules, shared storages, devices."""
