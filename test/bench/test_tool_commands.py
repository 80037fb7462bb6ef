"""The commands that tool calls are judged by: what is wanted is right, and nothing else."""

from jsonschema import Draft202012Validator
import pytest

from bench.quality.tools import calls, trained, written


def test_what_is_wanted_is_valid_and_right() -> None:
    tools, commands, talk = written()
    schemas = {name: schema for name, (_, schema) in tools.items()}
    assert len(tools) == 8 and len({command.text for command in commands}) == 60
    assert len({*talk, *(command.text for command in commands)}) == 80
    for command in commands:
        wanted = {key: value[-1] if isinstance(value, list) else value
                  for key, value in command.arguments.items()}
        if command.name == 'say':
            wanted['text'] = 'Anything.'
        Draft202012Validator(schemas[command.name]).validate(wanted)
        assert command.is_right((command.name, wanted), schemas)
        for key, value in wanted.items():
            other = {**wanted, key: value + 1 if isinstance(value, int | float) else f'{value}?'}
            assert command.is_right((command.name, other), schemas) == (command.name == 'say')
        for wrong in (None, ('dance', wanted), (command.name, {**wanted, 'x': 1}),
                      (command.name, None)):
            assert not command.is_right(wrong, schemas)


@pytest.mark.parametrize(('text', 'as_trained', 'kindly'), [
    ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', ('f', {'a': 1}), None),
    ('So:\n```json\n{\n "name": "f",\n "parameters": {"a": {}}}\n```', None, ('f', {'a': {}})),
    ('{{"name": "f", "arguments": {}}}', None, ('f', {})),
    ('{"a": 1} {"name": 3} {"name": "f"', None, None), ('No.', None, None),
    ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}', None, ('f', {'a': 1})),
])
def test_free_text_is_read(text: str, as_trained: tuple | None, kindly: tuple | None) -> None:
    assert trained(text) == as_trained
    assert next(calls(text), None) == (kindly or as_trained)
