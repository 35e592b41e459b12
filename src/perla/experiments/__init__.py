"""The paper's experiments: what is run, judged and drawn."""
