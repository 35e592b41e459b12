"""Training loops: collect, improve, evaluate."""
