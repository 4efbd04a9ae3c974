"""What can go wrong for a user, each with the exit code that the command line returns for it."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Tell a calling script how an entry point ended."""

    DONE = 0
    ANSWER_IS_NO = 1
    BAD_INPUT = 2
    STORE = 3
    DATA = 4
    BUG = 70
    INTERRUPTED = 130
    TERMINATED = 143


class StudyError(Exception):
    """Say what happened, what was expected and what to do; shown to the user without a traceback."""

    exit_code = ExitCode.BUG


class BadInputError(StudyError):
    """Refuse an option, a search space or a study that does not fit."""

    exit_code = ExitCode.BAD_INPUT


class StoreError(StudyError):
    """Report a store that cannot be opened or written."""

    exit_code = ExitCode.STORE


class DataError(StudyError):
    """Report image files that are missing, altered or unreadable."""

    exit_code = ExitCode.DATA


class DamagedModelError(StoreError):
    """Refuse a registered model whose file is missing, altered, half-written or not what this project saves."""
