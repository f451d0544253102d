"""A finished run as one directory to share: weights, tokenizer and a model card written from the records."""

from selfcorrect.sharing.export import export_run

__all__ = ["export_run"]
