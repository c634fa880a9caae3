"""Errors that a user can mend: one sentence that says what happened, and a hint that says what to do next."""

from __future__ import annotations


class SvdError(Exception):
    """What went wrong, in one sentence, and the hint that mends it.

    `cli.main` turns it into two lines on stderr and the exit code of its class. Anything else that
    escapes is our bug and exits with 1.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(SvdError):
    """The command line asks for something that cannot be (exit 2)."""

    exit_code = 2


class RecipeError(SvdError):
    """A recipe is wrong (exit 3)."""

    exit_code = 3


class InputError(SvdError):
    """Media, dataset or weights cannot be used (exit 4)."""

    exit_code = 4


class MachineError(SvdError):
    """This machine lacks device, memory or disk (exit 5)."""

    exit_code = 5


class ThresholdError(SvdError):
    """What was measured is past a threshold that the user has set (exit 6)."""

    exit_code = 6
