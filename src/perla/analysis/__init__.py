"""Reading and drawing run folders, without JAX."""
