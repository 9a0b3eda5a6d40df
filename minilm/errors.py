"""Errors that a person can act on. The doors print them as one sentence and exit with `exit_code`."""


class MinilmError(Exception):
    """A failure with a plain explanation: the disk is full, a download broke off."""

    exit_code = 1


class UsageError(MinilmError, ValueError):
    """A user's mistake: the message says what to do next."""

    exit_code = 2
