"""Results of run folders, read, compared and drawn without JAX."""
