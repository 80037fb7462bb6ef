"""Every error code has its line in doc/troubleshooting.md, and no line has a code that is none."""

from pathlib import Path
import re

from flash_llm_ros.store.errors import ErrorCode

PAGE = Path(__file__).resolve().parents[2] / 'doc' / 'troubleshooting.md'


def test_every_error_code_is_explained() -> None:
    explained = {int(number): name
                 for name, number in re.findall(r'`([A-Z_]+)` \((\d+)\)', PAGE.read_text())}
    assert explained == {int(code): code.name for code in ErrorCode if code is not ErrorCode.NONE}
