"""Learners, and the recipes that make methods of them."""
