"""``selfcorrect sft``."""


def sft() -> None:
    """Placeholder."""
