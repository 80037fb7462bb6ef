"""Calibrates stores of a model and prints what sparse mode then costs and gains."""

from argparse import Namespace
from dataclasses import asdict
import json
from pathlib import Path
import sys
import tempfile

from calibration_quality import (
    EXPECTED,
    SPARSITIES,
    WINDOWS,
    SparsePrice,
    exact_perplexity,
    ffn_bytes,
    model_store,
    predicted_perplexity,
    prefetch_recall,
    sparse_price,
    traffic,
)
from calibration_text import calibration_text, word_runs
from ensure_store import ensure_store
from held_out_text import held_out_text
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from flash_llm_ros.calibrate.calibration import CalibrationOptions, recalibrate
from flash_llm_ros.calibrate.predictor_forms import DEFAULT_FORMS
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine.tokens import load_tokenizer
from flash_llm_ros.store.flash_store import FlashStore

_LOADS = (0.9, 0.8, 0.7)
_TRAFFIC_TOKENS = 64


def calibrated(model: Path, neurons: str, tokens: int) -> FlashStore:
    """A store of the model, calibrated on the bench's own text; made when it is missing."""
    path = model_store(model, neurons)
    if not path.exists():
        ensure_store(model, path, neurons=neurons, calibrate=False)
        with Steps() as steps, tempfile.TemporaryDirectory(dir=path.parent) as work:
            recalibrate(path, [calibration_text()], Path(work), CalibrationOptions(
                most_tokens=tokens, forms=DEFAULT_FORMS, threads=2), steps)
    return FlashStore.open(path)


def measure(options: Namespace) -> dict[str, object]:
    """All figures of one model."""
    model, text = options.model, held_out_text()
    if not word_runs(text).isdisjoint(word_runs(calibration_text())):
        raise ValueError('the held-out text shares eight neighbouring words with the text that '
                         'is calibrated with')
    store = calibrated(model, options.neurons, options.calibration_tokens)
    tokens = load_tokenizer(store).encode(text)[:options.tokens]
    few = tokens[:_TRAFFIC_TOKENS]
    calibration = store.manifest.calibration
    say('exact stores')
    exact = {neurons: exact_perplexity(
        store if neurons == options.neurons else FlashStore.open(ensure_store(
            model, model_store(model, neurons), neurons=neurons, calibrate=False)), tokens)
        for neurons in ('fp16', 'int8', 'int4')}
    prices = [_say(sparse_price, store, tokens, sparsity)
              for sparsity in sorted({*SPARSITIES, calibration.default_sparsity})]
    say('prefetch')
    recall, precision = prefetch_recall(store, text, len(few))
    say('traffic')
    reads = [traffic(store, few, mode, window, **more) for window in WINDOWS
             for mode, more in (('exact', {'lookup_tokens': 0}),
                                ('sparse', {'down_reads': 'scattered'}))]
    say('neurons that the predictor alone leaves out')
    decided = {load: predicted_perplexity(store, tokens[:len(tokens) // 2], load)
               for load in (1.0, *_LOADS)}
    return {'model': store.manifest.model.name, 'model_type': store.manifest.model.model_type,
            'neurons': options.neurons, 'tokens': len(tokens),
            'calibration_tokens': calibration.text_tokens, 'exact': exact,
            'default_sparsity': calibration.default_sparsity,
            'sparse': [asdict(price) for price in prices],
            'prefetch_recall': recall, 'prefetch_precision': precision,
            'contribution_recall': calibration.mean_recall,
            'predictor_bytes': calibration.predictor_bytes, 'ffn_bytes': ffn_bytes(store),
            'traffic': [asdict(one) for one in reads],
            'predictor_decides': {str(load): value for load, value in decided.items()}}


def _say(price, store: FlashStore, tokens: list[int], sparsity: float) -> SparsePrice:
    say(f'sparsity {sparsity:.0%}')
    return price(store, tokens, sparsity)


def say(what: str) -> None:
    print(f'measuring {what}', file=sys.stderr, flush=True)


def show(figures: dict) -> str:
    """Print the tables; returns the headline."""
    console, exact = Console(width=110), figures['exact']
    base = exact[figures['neurons']]
    expected = EXPECTED.get(figures['model_type'], {})
    table = Table('regime', 'perplexity', f'relative to exact {figures["neurons"]}',
                  'equal shares, other text', 'columns left out', box=MARKDOWN)
    for neurons, value in exact.items():
        table.add_row(f'exact {neurons}', f'{value:.3f}', f'{value / base:.3f}', '', '0 %')
    for row in figures['sparse']:
        sparsity = row['sparsity']
        mark = ', the default' if sparsity == figures['default_sparsity'] else ''
        table.add_row(f'sparse {sparsity:.0%}{mark}', f'{row["perplexity"]:.3f}',
                      f'{row["perplexity"] / base:.3f}', str(expected.get(sparsity, '')),
                      f'{row["left_out"]:.1%}')
    console.print(f'{figures["model"]}, {figures["tokens"]} tokens of held-out text '
                  f'(bench/held_out_text.py), calibrated on {figures["calibration_tokens"]} '
                  'others (bench/calibration_text.py)')
    console.print(table)
    _show_traffic(console, figures)
    rows = [(load, value) for load, value in figures['predictor_decides'].items()]
    whole = rows[0][1]
    console.print('The predictor alone decides which neurons are loaded, gate and up rows too: '
                  + ', '.join(f'{float(load):.0%} {value / whole:.3f}' for load, value in rows[1:]))
    default = next(row for row in figures['sparse']
                   if row['sparsity'] == figures['default_sparsity'])
    gain = {window: [one['read'] for one in figures['traffic'] if one['window'] == window]
            for window in WINDOWS}
    return (f'{figures["model"]}: perplexity relative to exact '
            + ', '.join(f'{row["perplexity"] / base:.3f} at {row["sparsity"]:.0%}'
                        for row in figures['sparse'])
            + f'; by default {default["sparsity"]:.0%} at {default["perplexity"] / base:.3f}, '
            f'which at a window of 50 % reads {gain[0.5][1]:.1%} instead of {gain[0.5][0]:.1%} of '
            'the feed-forward bytes a token')


def _show_traffic(console: Console, figures: dict) -> None:
    console.print(
        f'Prefetch at the default sparsity: {figures["prefetch_recall"]:.1%} of the columns used '
        f'were predicted ({figures["contribution_recall"]:.1%} of their contribution, in '
        f'calibration), {figures["prefetch_precision"]:.1%} of the predicted were used; '
        f'predictors of {figures["predictor_bytes"] / 1e6:.1f} MB, '
        f'{figures["predictor_bytes"] / figures["ffn_bytes"]:.1%} of the feed-forward bytes')
    table = Table('window, of the feed-forward bytes', 'read per token, exact',
                  'sparse, by default', box=MARKDOWN)
    for window in WINDOWS:
        reads = {one['mode']: one['read'] for one in figures['traffic']
                 if one['window'] == window}
        table.add_row(f'{window:.0%}', f'{reads["exact"]:.1%}', f'{reads["sparse"]:.1%}')
    console.print(table)


def run(options: Namespace) -> int:
    figures = measure(options)
    headline = show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + '\n')
    print(headline)
    return 0
