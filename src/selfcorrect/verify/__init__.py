"""Verifiers: they turn a text into a verdict."""
