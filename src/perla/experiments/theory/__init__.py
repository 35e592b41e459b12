"""The paper's theorems on small games."""
