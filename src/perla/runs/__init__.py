"""Runs as data, carried out, kept in folders, and resumed to the bit."""
