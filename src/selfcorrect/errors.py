"""Errors a user can meet. Each message names the fault, the reason and the way out, in one paragraph."""

from pathlib import Path


class SelfCorrectError(Exception):
    """Base of every error this package raises on purpose. The command line prints it without a traceback."""

    exit_code = 2


class ConfigError(SelfCorrectError):
    """A setting is unknown, of the wrong type, out of range or in conflict with another."""


class DataError(SelfCorrectError):
    """A data set, a row of it, or a problem is missing or malformed."""


class ModelError(SelfCorrectError):
    """A model or its chat template cannot be used for this job."""


class EngineError(SelfCorrectError):
    """An engine verb failed. ``usable`` says whether the engine can continue; ``damaged`` is a checkpoint that cannot
    be read."""

    exit_code = 3

    def __init__(self, message: str, *, usable: bool, damaged: Path | None = None) -> None:
        super().__init__(message)
        self.usable = usable
        self.damaged = damaged


class RunError(SelfCorrectError):
    """A run directory cannot be written, read or resumed."""


class EndpointError(SelfCorrectError):
    """A model server cannot be reached, answers too late, or refuses.

    ``status`` is its HTTP status, None where no answer came; ``timed_out`` says that it was too slow. ``one_answer`` says
    that only this answer failed, and others may come. ``filtered`` has the refusal of a filter, or of the model itself.
    """

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        timed_out: bool = False,
        one_answer: bool = False,
        filtered: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.timed_out = timed_out
        self.one_answer = one_answer
        self.filtered = filtered


class Interrupted(SelfCorrectError):
    """The run was asked to stop (Ctrl-C, SIGTERM); a checkpoint has been written."""

    exit_code = 130
