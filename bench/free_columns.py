"""What a split store's sparse mode would gain by using all columns that are in DRAM anyway.

    python bench/free_columns.py STORE [--sparsity 0.7 0.9] [--per-group 1 4 10] [--window 0.25]
                                 [--tokens 600] [--json PATH]

At each sparsity: the active columns alone; with their neighbours in the same groups, which are read
with them; and with all groups that a window of the last used ones holds, too. None of them reads
more. Perplexity relative to exact mode on bench/held_out_text.py, the share of columns computed
with, and groups read per token, of the layer.
"""

from argparse import ArgumentParser
import json
from pathlib import Path
import sys

from calibration_quality import CONTEXT, exact_losses, opened
from fidelity import engine_logits, token_losses
from held_out_text import held_out_text
import numpy as np
from numpy.typing import NDArray
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from flash_llm_ros.convert.perplexity_growth import Growth
from flash_llm_ros.engine import Engine
from flash_llm_ros.engine.model.predictors import at_sparsity
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore

Array = NDArray[np.float32]
CHOICES = ('active', 'whole groups', 'whole window')


class LeastRecent:
    """Which groups of one layer a window of the last used ones holds."""

    def __init__(self, groups: int, slots: int) -> None:
        self._last, self._slots = np.zeros(groups, np.int64), slots
        self._time, self.missing = 0, 0

    def use(self, needed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """What is in DRAM while the groups `needed` are; both [groups]."""
        kept = np.zeros(len(needed), bool)
        if self._slots:
            kept[np.argpartition(-self._last, self._slots - 1)[:self._slots]] = True
            kept &= self._last > 0
        self._time += 1
        self._last[needed] = self._time
        self.missing += int((needed & ~kept).sum())
        return needed | kept


class ChosenColumns:
    """Stands in for an exact engine's feed-forward block; computes with the chosen columns only."""

    def __init__(self, engine: Engine, limits: NDArray[np.float64], choice: str, per_group: int,
                 window: float) -> None:
        self._dense, self._window = engine.model.feed_forward, engine.model.window
        self._activation, self._limits = engine.model.spec.activation, limits
        self._choice, self._per_group = choice, per_group
        self.begin = self._dense.begin
        groups = -(-engine.model.spec.ffn_size // per_group)
        self.windows = [LeastRecent(groups, round(window * groups)) for _ in limits]
        self.computed = self.total = 0

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> None:
        core, h = self._window.core, self._dense.activations[:len(x)]
        core.gate_up(self._window.section('gate_up', layer), x, h, self._activation)
        for row in h:
            active = np.abs(row) > self._limits[layer]
            needed = self._in_groups(active)
            held = self.windows[layer].use(needed)
            if self._choice != 'active':
                groups = needed if self._choice == 'whole groups' else held
                active = np.repeat(groups, self._per_group)[:len(row)]
            row[~active] = 0
            self.computed, self.total = self.computed + int(active.sum()), self.total + len(row)
        core.add_rows(self._window.section('down', layer), h, out)

    def _in_groups(self, active: NDArray[np.bool_]) -> NDArray[np.bool_]:
        padded = np.zeros(-(-len(active) // self._per_group) * self._per_group, bool)
        padded[:len(active)] = active
        return padded.reshape(-1, self._per_group).any(axis=1)


def measure(store: FlashStore, tokens: list[int], exact: np.ndarray, sparsity: float, choice: str,
            per_group: int, window: float) -> dict[str, object]:
    engine = opened(store)
    try:
        limits = at_sparsity(store.manifest.calibration.thresholds, sparsity)
        columns = ChosenColumns(engine, limits, choice, per_group, window)
        engine.model.feed_forward = columns
        growth = Growth.of(token_losses(engine_logits(engine, tokens), tokens), exact)
    finally:
        engine.close()
    groups = -(-store.manifest.model.ffn_size // per_group)
    return {'sparsity': sparsity, 'per_group': per_group, 'choice': choice,
            'relative': growth.relative, 'error': growth.relative_error,
            'computed': columns.computed / columns.total,
            'read': float(np.mean([one.missing for one in columns.windows])) / len(tokens) / groups}


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('store', type=Path, help='a calibrated store in the split layout')
    parser.add_argument('--sparsity', type=float, nargs='+', default=[0.7, 0.9])
    parser.add_argument('--per-group', type=int, nargs='+', default=[1, 4, 10])
    parser.add_argument('--window', type=float, default=0.25, help='share of the groups held')
    parser.add_argument('--tokens', type=int, default=600, help='of held-out text')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    try:
        store = FlashStore.open(options.store)
    except FlashLlmError as error:
        print(f'{parser.prog}: {error}', file=sys.stderr)
        return 1
    if store.manifest.layout != 'split' or store.manifest.calibration is None:
        parser.error(f'{options.store} must be calibrated and in the split layout')
    engine = opened(store)
    tokens = engine.tokenize(held_out_text())[:min(options.tokens, CONTEXT)]
    engine.close()
    exact, rows = exact_losses(store, tokens), []
    table = Table('sparsity', 'columns a group', 'used', 'perplexity', 'columns computed with',
                  'groups read', box=MARKDOWN)
    for sparsity in options.sparsity:
        for per_group in options.per_group:
            for choice in CHOICES:
                if choice == 'whole groups' and per_group == 1:
                    continue                    # which are the active columns
                print(f'measuring {sparsity:.0%}, {per_group} a group: {choice}', file=sys.stderr,
                      flush=True)
                row = measure(store, tokens, exact, sparsity, choice, per_group, options.window)
                rows.append(row)
                table.add_row(f'{sparsity:.0%}', str(per_group), choice,
                              f'{row["relative"]:.3f} ± {row["error"]:.3f}',
                              f'{row["computed"]:.1%}', f'{row["read"]:.1%}')
    Console(width=110).print(table)
    if options.json:
        options.json.write_text(json.dumps({'store': store.manifest.model.name,
                                            'tokens': len(tokens), 'window': options.window,
                                            'rows': rows}, indent=2) + '\n')
    print(f'{store.manifest.model.name}, {len(tokens)} tokens: perplexity relative to exact mode '
          + '; '.join(f'{row["sparsity"]:.0%}, {row["per_group"]} a group, {row["choice"]} '
                      f'{row["relative"]:.3f}' for row in rows))
    return 0


if __name__ == '__main__':
    sys.exit(main())
