"""Worlds: what they must offer, and those that are built in."""
