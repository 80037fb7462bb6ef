"""What `flash_llm top` shows, drawn from plain values."""

from collections.abc import Iterable
from dataclasses import dataclass, field
import math
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from flash_llm_ros.client.seen_nodes import SeenNode

BARS = ' ▁▂▃▄▅▆▇█'
STALE_AFTER = 5.0      # s without a status
COLOURS = {'OK': 'green', 'WARN': 'yellow', 'ERROR': 'bold red', 'STALE': 'magenta'}
PLAN_TOTALS = ('planned', 'budget', 'model on flash')


@dataclass(frozen=True)
class Snapshot:
    """What a node said: fields of EngineStatus; part -> level, sentence, values of diagnostics."""

    node: str
    age: float      # s since the status came
    status: dict[str, Any]
    parts: dict[str, tuple[str, str, dict[str, str]]]
    # of the latest statuses: tokens/s, flash bytes/s
    history: tuple[tuple[float, float], ...] = field(default=())


def screen(shown: Snapshot, whole: bool = True) -> RenderableType:
    """Return one screen for rich; not `whole`: sentences are cut, so that 80x24 is enough."""
    tables = Table.grid(padding=(0, 3))
    tables.add_row(_figures(shown), _plan(shown))
    return Panel(Group(tables, _health(shown, whole)), title=_title(shown), title_align='left')


def fleet_screen(nodes: Iterable['SeenNode']) -> RenderableType:
    """Return a line for each node that has said something."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style='bold')
    for name in ('node', 'state', 'model'):
        table.add_column(name, overflow='ellipsis', no_wrap=True)
    for name in ('tokens/s', 'waits', 'done', 'failed', 'RSS', '°C'):
        table.add_column(name, justify='right', no_wrap=True)
    for node in nodes:
        status, temperature = node.status, node.status.temperature
        table.add_row(
            node.name, Text(node.state, style='bold red' if node.state == 'silent' else ''),
            status.model, f'{node.tokens_per_second:.1f}', f'{status.queue_length}',
            f'{status.requests_done}', f'{status.requests_failed}', _bytes(status.rss),
            '-' if math.isnan(temperature) else f'{temperature:.0f}')
    return table


def sparkline(values: list[float]) -> str:
    """Return a bar of text for each value, the largest of them the highest."""
    most = max(values, default=0.0)
    if not most > 0:
        return BARS[0] * len(values)
    return ''.join(BARS[math.ceil(max(value, 0.0) / most * (len(BARS) - 1))] for value in values)


def _title(shown: Snapshot) -> Text:
    status = shown.status
    title = Text(f'{shown.node}: {status["state"]}', style='bold')
    title.append(f'  {status["model"]} {status["mode"]}'.rstrip(), style='not bold')
    if shown.age > STALE_AFTER:
        title.append(f'  no status for {shown.age:.0f} s', style='bold red')
    return title


def _figures(shown: Snapshot) -> Table:
    status = shown.status
    table = Table.grid(padding=(0, 2))
    rates, flash = ([entry[index] for entry in shown.history[-20:]] for index in (0, 1))
    temperature = status['temperature']
    rows = (
        ('tokens/s', f'{status["tokens_per_second"]:.2f}'),
        ('', sparkline(rates)),
        ('first token', f'{status["time_to_first_token"]:.2f} s'),
        ('flash', f'{_bytes(status["flash_bytes_per_second"])}/s'),
        ('', sparkline(flash)),
        ('read', f'{_bytes(status["flash_bytes"])} in {status["flash_reads"]} reads'),
        ('hit rate', f'{status["hit_rate"]:.1%}'),
        ('active neurons', f'{status["active_fraction"]:.1%}'),
        ('waiting', f'{status["queue_length"]} requests'),
        ('answered', f'{status["requests_done"]}, failed {status["requests_failed"]}'),
        ('cancelled', f'{status["requests_cancelled"]}, pre-empted {status["preemptions"]}'),
        ('sessions', f'{status["sessions"]}'),
        ('tokens', f'{status["tokens_generated"]}'),
        ('threads', f'{status["threads"]}, {status["duty_cycle"]:.0%} of the time'),
        ('temperature', '-' if math.isnan(temperature) else f'{temperature:.1f} °C'),
    )
    for name, text in rows:
        table.add_row(Text(name, style='dim'), text)
    return table


def _plan(shown: Snapshot) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()      # where it is narrow, the notes give way
    table.add_row(Text('memory plan', style='bold'))
    for name, value in shown.parts.get('memory plan', ('', '', {}))[2].items():
        if name not in PLAN_TOTALS:
            amount, _, note = value.partition(' B')
            table.add_row(Text(name, style='dim'), Text(_bytes(float(amount)), justify='right'),
                          _note(note.removeprefix('; ')))
    status = shown.status
    for name, amount, note in (('planned', status['dram_planned'], ''),
                               ('budget', status['dram_budget'], 'the promise'),
                               ('resident set', status['rss'], 'of the whole process'),
                               ('model on flash', status['model_bytes'], '')):
        table.add_row(Text(name), Text(_bytes(amount), justify='right'), _note(note))
    return table


def _health(shown: Snapshot, whole: bool) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for part, (level, text, _) in shown.parts.items():
        if part != 'memory plan':
            table.add_row(Text(part, style='dim'), Text(level, style=COLOURS[level]),
                          Text(text, no_wrap=not whole, overflow='fold' if whole else 'ellipsis'))
    return table


def _note(text: str) -> Text:
    return Text(text, style='dim', no_wrap=True, overflow='ellipsis')


def _bytes(amount: float) -> str:
    for unit, size in (('GB', 1e9), ('MB', 1e6), ('kB', 1e3)):
        if amount >= size:
            return f'{amount / size:.1f} {unit}'
    return f'{amount:.0f} B'
