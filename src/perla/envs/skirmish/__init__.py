"""Skirmish: battles between two small armies, in pure JAX, by the rules of SMAC's maps."""
