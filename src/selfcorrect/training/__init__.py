"""The training loop, its steps, and the supervised warm-up."""
