"""What every command of bench/ has: --help, --json, a headline as its last line."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
import json
import multiprocessing
import os
from pathlib import Path
import sys
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.store.errors import FlashLlmError


@dataclass(frozen=True)
class Report:
    """What a command found: for --json, for its last line, and whether something is wrong."""

    figures: Any
    headline: str
    wrong: bool = False


def command(docstring: str) -> ArgumentParser:
    """A parser that describes itself with the first paragraph of the module's docstring."""
    spec = sys.modules['__main__'].__spec__
    parser = ArgumentParser(prog=f'python -m {spec.name}' if spec else None,
                            description=' '.join(docstring.partition('\n\n')[0].splitlines()))
    parser.add_argument('--json', type=Path, metavar='PATH', help='write the figures there')
    return parser


def run(parser: ArgumentParser, measure: Callable[[Namespace], Report],
        arguments: Sequence[str] | None = None) -> int:
    """Measure with the options of the command line; returns the exit status."""
    options = parser.parse_args(arguments)
    before = os.getloadavg()[0]
    try:
        report = measure(options)
    except (FlashLlmError, OSError, RuntimeError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    load = before, os.getloadavg()[0]
    if options.json:
        options.json.write_text(json.dumps(
            {'load': load, 'processors': os.cpu_count(), 'figures': report.figures},
            indent=2) + '\n')
    print(f'load average {load[0]:.1f} before, {load[1]:.1f} after, {os.cpu_count()} processors')
    print(report.headline)
    return int(report.wrong)


def byte_size(text: str) -> int:
    """Type of an argument such as 560MB."""
    try:
        return parse_byte_size('size', text)
    except FlashLlmError as error:
        raise ArgumentTypeError(str(error)) from error


def at_least(least: int) -> Callable[[str], int]:
    """Type of an argument that is a whole number."""
    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ArgumentTypeError(f'{text!r} must be a whole number of at least {least}')
        return int(text)
    return convert


def show(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = '') -> None:
    """Print a table in Markdown, figures to the right."""
    table = Table(columns[0], box=MARKDOWN)
    for name in columns[1:]:
        table.add_column(name, justify='right', no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(width=200, highlight=False)
    if title:
        console.print(title)
    console.print(table)


def apart(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a fresh process: an engine opened before would change what memory is free."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:
        return process.submit(call, *arguments).result()
