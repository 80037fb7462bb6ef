"""doc/parameters.md out of the table: `python -m flash_llm_ros.node.parameter_docs > FILE`."""

from itertools import groupby

from flash_llm_ros.node.parameters import TABLE, Change, Entry

MAY_CHANGE = {
    Change.NEVER: 'never',
    Change.UNCONFIGURED: 'unconfigured',
    Change.ALWAYS: 'always',
    Change.AT_ONCE: 'at once',
}
HEAD = """\
# Parameters

`python -m flash_llm_ros.node.parameter_docs > doc/parameters.md` writes this page from the node's
own table; a test compares them. `ros2 param describe /flash_llm NAME` tells the same. A value that
is out of range, or no choice, is refused with a sentence that says what would be right; so are
unknown names and those of older versions, which had no groups. A size needs a unit. Of parameters
that are set together (`set_parameters_atomically`) all are taken or none. The folder `config/` has
a file with all defaults and starting points for three machines.

| may change | |
|---|---|
| never | read-only: on the command line, in a parameter file or in a launch file |
| unconfigured | read when the node is configured; while it is, a change is refused |
| always | holds from the next request on |
| at once | holds from the next token, or chunk of the prompt, on |
"""


def markdown() -> str:
    """Return the page."""
    parts = [HEAD]
    for group, entries in groupby(TABLE, lambda entry: entry.name.rpartition('.')[0]):
        title = f'## {group}\n\n' if group else ''
        parts.append(f'{title}| parameter | default | range | unit | may change | meaning |\n'
                     '|---|---|---|---|---|---|\n' + '\n'.join(map(_row, entries)) + '\n')
    return '\n'.join(parts)


def _row(entry: Entry) -> str:
    cells = (f'`{entry.name}`', _value(entry.default), _range(entry), entry.unit,
             MAY_CHANGE[entry.change], entry.about)
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
