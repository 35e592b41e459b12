"""Training loops: collect, update, evaluate."""
