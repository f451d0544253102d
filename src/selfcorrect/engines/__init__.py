"""Where tokens are sampled and weights are trained. Engines know nothing of self-correction."""
