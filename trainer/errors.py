"""Errors that end a run, each with the exit code that scripts rely on (README, "Exit codes").

An error names the value, the rule it breaks and the remedy. `ValueError` is for arguments of a
single function; the classes here are for what a user of the command line has to act on.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process returns; a scheduler may branch on it."""

    DONE = 0
    RECIPE = 2
    RESOURCES = 3
    DATA = 4
    INFRASTRUCTURE = 10
    NUMERIC = 11
    WATCHDOG = 12
    STOPPED = 143


class BraidError(Exception):
    """A failure with a known remedy. Subclasses fix the exit code."""

    exit_code = ExitCode.INFRASTRUCTURE


class RecipeError(BraidError):
    """The recipe or the command line asks for something impossible."""

    exit_code = ExitCode.RECIPE


class ResourceError(BraidError):
    """The cluster, the host or the disk has less than the run needs."""

    exit_code = ExitCode.RESOURCES


class DataError(BraidError):
    """The data cannot be read as the recipe says."""

    exit_code = ExitCode.DATA


class InfrastructureError(BraidError):
    """A process, host or link failed; starting again may help."""

    exit_code = ExitCode.INFRASTRUCTURE


class NumericError(BraidError):
    """Loss or gradients are not finite, or a resumed run does not reproduce its proof."""

    exit_code = ExitCode.NUMERIC
