"""Task settings by name, without a whole config."""

from selfcorrect.config import TaskConfig, validate


def task_config(**settings) -> TaskConfig:
    return validate({"task": settings}).task
