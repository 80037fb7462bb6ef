"""The one error type of the package: a code for programs and a sentence for people."""

from enum import IntEnum


class ErrorCode(IntEnum):
    """The same numbers as the constants of ``flash_llm_msgs/msg/EngineError``."""

    NONE = 0
    EMPTY_PROMPT = 1
    INVALID_TEXT = 2
    PROMPT_TOO_LONG = 3
    INVALID_SAMPLING = 4
    INVALID_REQUEST = 5
    INVALID_CONSTRAINT = 6
    CONSTRAINT_UNMET = 7
    NO_SUCH_SESSION = 8
    QUEUE_FULL = 10
    NOT_ACTIVE = 11
    CANCELLED = 12
    DEADLINE = 13
    REPLACED = 14
    CLIENT_GONE = 15
    TOO_MANY_SESSIONS = 16
    STORE_NOT_FOUND = 20
    STORE_INCOMPLETE = 21
    STORE_CORRUPT = 22
    STORE_VERSION = 23
    BUDGET_TOO_SMALL = 30
    INVALID_PARAMETER = 31
    READ_FAILED = 40
    CHECKSUM_MISMATCH = 41
    INTERNAL = 50


_MOST_CHARACTERS = 4000     # of a message, which may quote what was asked; a memory plan has 2,000


class FlashLlmError(Exception):
    """An expected failure with a typed code; ``str(error)`` is a whole sentence.

    A very long one is cut: it is kept, logged and published again and again.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        if len(message) > _MOST_CHARACTERS:
            message = f'{message[:_MOST_CHARACTERS]} ... ({len(message)} characters)'
        super().__init__(message)
        self.code = code


class ReaderUnavailableError(FlashLlmError):
    """A way of reading was asked for that kernel, container or file system do not have."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.INVALID_PARAMETER, message)


class ReadFailedError(FlashLlmError):
    """A read from the flash store failed twice."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.READ_FAILED, message)


class ChecksumError(FlashLlmError):
    """A group read from the flash store does not match its CRC32C, twice."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.CHECKSUM_MISMATCH, message)
