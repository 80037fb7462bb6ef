"""Strings as they come over the wire."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

pytestmark = pytest.mark.ros


def read_cdr_string(data):
    from flash_llm_ros.node.interfaces import topics

    return topics.read_cdr_string(data)


@given(st.text(st.characters(exclude_characters='\0', exclude_categories=['Cs'])))
def test_strings_are_read_as_ros_writes_them(text):
    from rclpy.serialization import serialize_message
    from std_msgs.msg import String

    assert read_cdr_string(serialize_message(String(data=text))) == text


@given(st.binary(max_size=40))
def test_any_bytes_give_a_text_or_a_typed_error(data):
    try:
        text = read_cdr_string(data)
    except FlashLlmError as error:
        assert error.code == ErrorCode.INVALID_TEXT
    else:
        assert '\0' not in text
        assert text.encode() in data        # nothing was replaced


@pytest.mark.parametrize('order', ['<', '>'])
def test_both_byte_orders(order):
    data = 'Größe'.encode() + b'\0'
    length = len(data).to_bytes(4, 'little' if order == '<' else 'big')
    assert read_cdr_string(bytes([0, order == '<', 0, 0]) + length + data) == 'Größe'


def test_the_place_of_the_fault_is_told():
    with pytest.raises(FlashLlmError, match='byte 2'):
        read_cdr_string(b'\0\1\0\0\5\0\0\0ab\xffd\0')
    with pytest.raises(FlashLlmError, match='claims 9 bytes'):
        read_cdr_string(b'\0\1\0\0\x09\0\0\0ab')
