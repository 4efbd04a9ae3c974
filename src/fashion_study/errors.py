"""The errors that a user can cause or meet, each with its exit code."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of the entry points, for scripts."""

    DONE = 0
    ANSWER_IS_NO = 1
    BAD_INPUT = 2
    STORE = 3
    DATA = 4
    BUG = 70
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143


class StudyError(Exception):
    """An error whose message says what happened, what was expected and what to do; shown without a traceback."""

    exit_code = ExitCode.BUG


class BadInputError(StudyError):
    """An option, a search space or a study that does not fit."""

    exit_code = ExitCode.BAD_INPUT


class StoreError(StudyError):
    """A store that cannot be opened or written."""

    exit_code = ExitCode.STORE


class DataError(StudyError):
    """Image files that are missing, altered or unreadable."""

    exit_code = ExitCode.DATA


class DamagedModelError(StoreError):
    """A registered model whose file is missing, altered, incomplete or not one that this project saves."""
