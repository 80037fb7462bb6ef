"""What rclpy takes: messages whose fields are checked when they are set, and texts."""

from typing import TypeVar

Message = TypeVar('Message')


def checked_message(kind: type[Message]) -> Message:
    """Return an empty one; what does not fit a field of it raises AssertionError."""
    try:
        return kind(check_fields=True)
    except AssertionError:      # Humble's check always, and have no such argument
        return kind()


def check_text(name: str, text: str) -> None:
    """ValueError for what rclpy cuts, at a NUL, or cannot encode, such as a lone surrogate."""
    if (at := text.find('\0')) >= 0:
        raise ValueError(f'{name} holds a NUL at character {at}; leave it out.')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f'{name} is not valid UTF-8 at character {error.start}; it holds half of '
                         'a character, or a byte of another encoding.') from None
