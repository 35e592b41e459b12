"""Bridges between perla's environments and other libraries'."""
