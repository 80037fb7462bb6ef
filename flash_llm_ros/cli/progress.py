"""Progress of long commands: bars on a terminal, a line per step elsewhere."""

import sys
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Steps:
    """Call it with (what, done, total); each `what` becomes a bar, or one line when it is done."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._bars = Progress(TextColumn('{task.description:<12}'), BarColumn(),
                              MofNCompleteColumn(), TimeElapsedColumn())
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> 'Steps':
        if self._terminal:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._terminal:          # rich before 14.3 ends a line that it never began
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done)
        if done >= total and not self._terminal:
            print(f'{what}: {total} done', file=sys.stderr, flush=True)
