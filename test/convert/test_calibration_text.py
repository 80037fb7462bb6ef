"""Text for calibration, from files."""

import json
from pathlib import Path

from flash_llm_ros.convert.calibration_text import read_texts


def test_json_lines(tmp_path: Path) -> None:
    lines = ['a plain string', {'text': 'one'}, {'prompt': 'ask', 'response': 'say'},
             {'messages': [{'role': 'user', 'content': 'hi'}, {'role': 'x', 'content': 'ho'}]}]
    (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n\n')
    (tmp_path / 'b.txt').write_text('all of it\n')
    assert read_texts([tmp_path / 'a.jsonl', tmp_path / 'b.txt']) == [
        'a plain string', 'one', 'ask\n\nsay', 'hi\n\nho', 'all of it\n']
