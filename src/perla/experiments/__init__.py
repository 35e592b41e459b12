"""The paper's experiments: their runs, verdicts and figures."""
