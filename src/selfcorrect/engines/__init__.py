"""Engines: where tokens are sampled and weights are trained. They know nothing of self-correction."""
