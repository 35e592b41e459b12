"""The average over the other agents' policies."""
