"""Errors that a user can act on. Each says which file or input, what is wrong with it and what to do."""

from __future__ import annotations


class MSTKDError(Exception):
    """Base of every error meant for a user; `exit_code` is what the command line ends with."""

    exit_code = 1


class InputError(MSTKDError):
    """An input file or volume cannot be used (missing, truncated, 2-D, constant, NaN ...)."""

    exit_code = 3


class GeometryError(InputError):
    """Inputs that cannot be brought together in space (no overlap, zero spacing, singular direction)."""

    exit_code = 4


class RoleError(InputError):
    """It is not clear which volume is which sequence, or one was given twice."""

    exit_code = 5


class WeightsError(MSTKDError):
    """The weights file is damaged, foreign, or made for another preset."""

    exit_code = 6


class DeviceError(MSTKDError):
    """The device asked for does not exist, or has too little memory for even the smallest window."""

    exit_code = 7


class OutputError(MSTKDError):
    """The output cannot be written (exists, not writable, unknown ending, disk full)."""

    exit_code = 8


class BatchError(MSTKDError):
    """A batch ended, but at least one of its cases failed."""

    exit_code = 9


class Cancelled(MSTKDError):  # noqa: N818 - a request, not a fault
    """The user asked to stop; nothing was written."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """An error of another library in one line; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
