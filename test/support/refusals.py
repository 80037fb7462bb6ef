"""What is refused has a code, and a sentence that says why."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError


@contextmanager
def assert_error(code: ErrorCode, words: str = '') -> Iterator[pytest.ExceptionInfo[FlashLlmError]]:
    """Its body raises a FlashLlmError of this code, whose sentence has these words."""
    with pytest.raises(FlashLlmError) as caught:
        yield caught
    assert caught.value.code is code
    assert words in str(caught.value)
