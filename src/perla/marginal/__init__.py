"""Averages of a critic over the other agents' policies."""
