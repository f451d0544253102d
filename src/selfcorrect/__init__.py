"""Train a language model to correct its own answers: SCoRe (Kumar et al. 2024, arXiv:2409.12917)."""

__version__ = "0.1.0"
