"""Figure 1: matrix games."""
