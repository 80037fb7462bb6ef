"""Reads a std_msgs/String as it came over the wire.

rclpy replaces bytes that are not UTF-8 and cuts a string at its first NUL without telling; a prompt
so changed must be refused instead of answered.
"""

import struct

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

HEADER = 4  # bytes of the encapsulation header; the lowest bit of its second byte: little endian


def read_cdr_string(message: bytes) -> str:
    """Return the text of a serialised std_msgs/String; raises FlashLlmError(INVALID_TEXT)."""
    if len(message) < HEADER + 4:
        raise FlashLlmError(ErrorCode.INVALID_TEXT, 'The message is too short for a string.')
    order = '<' if message[1] & 1 else '>'
    (length,) = struct.unpack_from(f'{order}I', message, HEADER)
    data = message[HEADER + 4:HEADER + 4 + length]
    if len(data) < length:
        raise FlashLlmError(
            ErrorCode.INVALID_TEXT, f'The string claims {length} bytes, {len(data)} came.')
    data = data[:-1] if data.endswith(b'\0') else data
    if (nul := data.find(b'\0')) >= 0:
        raise FlashLlmError(
            ErrorCode.INVALID_TEXT, f'The prompt holds a NUL at byte {nul}; leave it out.')
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FlashLlmError(
            ErrorCode.INVALID_TEXT,
            f'The prompt is not valid UTF-8 at byte {error.start}: {error.reason}.') from None
