"""Runs: their data, execution and folders, and resumption to the bit."""
