"""Errors a user can act on. Each carries the exit code of the command that meets it; anything else is a bug and keeps its traceback."""

from collections.abc import Sequence


class TunescopeError(Exception):
    """Something the user can mend. The message says what happened, where, and what to do."""

    exit_code = 1


class StepError(TunescopeError):
    """A step cannot go on (non-finite loss, degenerate states, a dead engine). Its siblings go on."""

    exit_code = 1


class OutOfMemoryError(StepError):
    """Even the smallest micro-batch does not fit into GPU memory. The step is tried again with nothing beside it."""


class StudyError(TunescopeError):
    """The study file or the command line is wrong. Lists every problem at once."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class PrerequisiteError(TunescopeError):
    """Something that must be there is not: a file, a package, a model, or bytes that match their checksum."""

    exit_code = 3
