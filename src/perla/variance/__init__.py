"""The noise of an actor-critic's advantage and policy gradient, divided by its causes."""

ALGO, STEPS, STATES = "ippo", 100_000, 8192
LAMBDAS = (0.0, 0.5, 0.9, 0.95, 1.0)
"""The defaults of a diagnosis."""
