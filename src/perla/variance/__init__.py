"""The noise of an actor-critic's advantage and policy gradient, divided by its causes."""
