"""Amounts of memory as people write them: '96MB', '1.5GB', '64MiB', 100000000."""

import re

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

UNITS = {
    '': 1, 'B': 1,
    'KB': 10**3, 'MB': 10**6, 'GB': 10**9,
    'KIB': 2**10, 'MIB': 2**20, 'GIB': 2**30,
}
AMOUNT = re.compile(r'(\d+(?:\.\d+)?)\s*([A-Z]*)')
RIGHT = "a positive number of bytes with a unit, such as '96MB', '1.5GB' or '64MiB'"
LARGEST = 2**50


def parse_byte_size(field: str, value: str | int) -> int:
    """Return bytes; ``MB`` is 10**6 and ``MiB`` 2**20, a plain number is bytes.

    Raises FlashLlmError(INVALID_PARAMETER) naming the field, the value and what would be right.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        amount = AMOUNT.fullmatch(value.strip().upper()) if isinstance(value, str) else None
        if amount is None or amount.group(2) not in UNITS:
            raise FlashLlmError(
                ErrorCode.INVALID_PARAMETER, f'{field} is {value!r}; it has to be {RIGHT}.')
        size = int(min(float(amount.group(1)) * UNITS[amount.group(2)], LARGEST + 1))
    if not 0 < size <= LARGEST:
        raise FlashLlmError(
            ErrorCode.INVALID_PARAMETER,
            f'{field} is {value!r}; it has to be {RIGHT}, at most {LARGEST} bytes.')
    return size
