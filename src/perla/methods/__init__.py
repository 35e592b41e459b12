"""What the methods are, as data: settings, recipes and presets, without JAX."""
