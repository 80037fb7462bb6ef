"""What went wrong, as OpenAI's interface says it: a status, a type, a code, a sentence."""

from typing import Any

from flash_llm_ros.client import AnswerError
from flash_llm_ros.store.errors import ErrorCode

INVALID = 'invalid_request_error'
_OF_NODE = {
    ErrorCode.PROMPT_TOO_LONG: (400, INVALID, 'context_length_exceeded'),
    ErrorCode.QUEUE_FULL: (429, 'rate_limit_error', 'queue_full'),
    ErrorCode.REPLACED: (409, 'conflict_error', 'replaced'),
    ErrorCode.NOT_ACTIVE: (503, 'server_error', 'not_active'),
    ErrorCode.CANCELLED: (503, 'server_error', 'not_active'),
    ErrorCode.DEADLINE: (504, 'server_error', 'deadline'),
} | {code: (400, INVALID, code.name.lower()) for code in (
    ErrorCode.EMPTY_PROMPT, ErrorCode.INVALID_TEXT, ErrorCode.INVALID_SAMPLING,
    ErrorCode.INVALID_REQUEST, ErrorCode.INVALID_CONSTRAINT)}


class ApiError(Exception):
    """An error with an HTTP status; ``body`` is what the client gets."""

    def __init__(self, status: int, kind: str, message: str, *, param: str | None = None,
                 code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self._fields = {'message': message, 'type': kind, 'param': param, 'code': code}

    @property
    def body(self) -> dict[str, Any]:
        return {'error': self._fields}


def invalid(message: str, param: str | None = None) -> ApiError:
    """Return what a request gets that makes no sense, or asks for what there is not."""
    return ApiError(400, INVALID, message, param=param)


def short(value: Any) -> str:
    """Return a value as a sentence can quote it."""
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'


def from_outcome(error: Exception) -> ApiError:
    """Return what the end of a request without an answer is to its client."""
    if isinstance(error, ValueError):
        return invalid(str(error))
    if isinstance(error, AnswerError):
        status, kind, code = _OF_NODE.get(
            error.code, (500, 'server_error', ErrorCode(error.code).name.lower()))
        return ApiError(status, kind, str(error), code=code)
    return ApiError(503, 'server_error', str(error), code='node_lost')
