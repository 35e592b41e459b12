"""The methods as data: settings, recipes and presets, without JAX."""
