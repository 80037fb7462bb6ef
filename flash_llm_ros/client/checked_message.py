"""Messages whose fields are checked when they are set."""

from typing import TypeVar

Message = TypeVar('Message')


def checked_message(kind: type[Message]) -> Message:
    """Return an empty one; what does not fit a field of it raises AssertionError."""
    try:
        return kind(check_fields=True)
    except AssertionError:      # Humble's check always, and have no such argument
        return kind()
