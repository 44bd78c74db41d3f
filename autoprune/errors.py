"""The one exception a user is meant to read."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: the message names the value, the reason and the remedy, on one line.

    The command line prints it without a traceback and exits with status 2.
    """
