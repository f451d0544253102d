"""Playing and tabulating episodes: every attempt of a model at a problem, graded."""
