"""doc/parameters.md out of the table: `python -m flash_llm_ros.node.parameter_docs > FILE`."""

from flash_llm_ros.node.parameters import TABLE, Change, Entry

TITLES = {
    Change.UNCONFIGURED: 'Read when the node is configured',
    Change.ALWAYS: 'May change at any time',
    Change.AT_ONCE: 'May change even during a request',
    Change.NEVER: 'Given when the node starts',
}
ABOUT = {
    Change.UNCONFIGURED: 'While the node is configured, a change is refused: clean it up first.',
    Change.ALWAYS: 'A change holds from the next request on, where nothing else is said.',
    Change.AT_ONCE: 'A change holds from the next token, or chunk of the prompt, on.',
    Change.NEVER: 'Read-only: on the command line, in a parameter file or in a launch file.',
}
HEAD = """\
# Parameters

`python -m flash_llm_ros.node.parameter_docs > doc/parameters.md` writes this page from the node's
own table; a test compares them. `ros2 param describe /flash_llm NAME` tells the same. A value that
is out of range, or no choice, is refused with a sentence that says what would be right. Of
parameters that are set together (`set_parameters_atomically`) all are taken or none. The folder
`config/` has a file with all defaults and starting points for three machines.
"""


def markdown() -> str:
    """Return the page."""
    parts = [HEAD]
    for change, title in TITLES.items():
        rows = [_row(entry) for entry in TABLE if entry.change is change]
        parts.append(f'## {title}\n\n{ABOUT[change]}\n\n| parameter | default | range | unit | '
                     'meaning |\n|---|---|---|---|---|\n' + '\n'.join(rows) + '\n')
    return '\n'.join(parts)


def _row(entry: Entry) -> str:
    cells = (f'`{entry.name}`', _value(entry.default), _range(entry), entry.unit, entry.about)
    return f'| {" | ".join(cells)} |'


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'`{value}`' if value != '' else 'empty'


def _range(entry: Entry) -> str:
    if entry.low is not None:
        return f'{_number(entry.low)} to {_number(entry.high)}'
    return entry.constraint or {bool: 'true or false', str: 'text'}[type(entry.default)]


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f'{value:g}'


if __name__ == '__main__':
    print(markdown(), end='')
