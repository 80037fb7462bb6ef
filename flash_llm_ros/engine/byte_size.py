"""Amounts of memory as people write them: '96MB', '1.5GB', '64MiB'."""

import re

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

UNITS = {
    'B': 1,
    'KB': 10**3, 'MB': 10**6, 'GB': 10**9,
    'KIB': 2**10, 'MIB': 2**20, 'GIB': 2**30,
}
AMOUNT = re.compile(r'(\d+(?:\.\d+)?)\s*([A-Z]*)')
RIGHT = "a positive number of bytes with a unit, such as '96MB', '1.5GB' or '64MiB'"
LARGEST = 2**50


def parse_byte_size(field: str, value: str) -> int:
    """Return bytes; ``MB`` is 10**6 and ``MiB`` 2**20.

    Raises FlashLlmError(INVALID_PARAMETER) naming the field, the value and what would be right:
    also for a number without a unit, which YAML takes for an integer. 96 is not meant as bytes.
    """
    amount = AMOUNT.fullmatch(str(value).strip().upper()) if type(value) in (str, int) else None
    if amount is not None and not amount.group(2):
        raise FlashLlmError(
            ErrorCode.INVALID_PARAMETER,
            f'{field} is {value!r}, without a unit; it has to be {RIGHT}.')
    if amount is None or amount.group(2) not in UNITS:
        raise FlashLlmError(
            ErrorCode.INVALID_PARAMETER, f'{field} is {value!r}; it has to be {RIGHT}.')
    size = int(min(float(amount.group(1)) * UNITS[amount.group(2)], LARGEST + 1))
    if not 0 < size <= LARGEST:
        raise FlashLlmError(
            ErrorCode.INVALID_PARAMETER,
            f'{field} is {value!r}; it has to be {RIGHT}, at most {LARGEST} bytes.')
    return size
