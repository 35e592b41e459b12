"""Trained policies outside of training: acting in a loop of one's own, and exporting."""
