"""JAX: arrays."""
