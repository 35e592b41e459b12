"""A method, an estimator, a mixer and an environment family, each in one file."""
