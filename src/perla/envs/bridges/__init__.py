"""Bridges to other libraries' environments."""
