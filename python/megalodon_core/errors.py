"""The one exception that a command turns into a single line on stderr and exit code 2."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the person at the keyboard can mend; the message says what was wrong and what to do."""
