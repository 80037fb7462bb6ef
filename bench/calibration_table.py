"""Calibrates stores of a model and prints what sparse mode then costs and gains."""

from argparse import Namespace
from dataclasses import asdict
import json
import os
from pathlib import Path
import sys
import tempfile

from calibration_quality import (
    CONTEXT,
    EXPECTED,
    SPARSITIES,
    WINDOWS,
    chunked_price,
    exact_losses,
    ffn_bytes,
    model_store,
    predicted_losses,
    prefetch_recall,
    sparse_price,
    traffic,
)
from calibration_text import calibration_text, word_runs
from ensure_store import ensure_store
from held_out_text import held_out_text
import numpy as np
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from flash_llm_ros.calibrate.calibration import CalibrationOptions, recalibrate
from flash_llm_ros.calibrate.perplexity_growth import Growth
from flash_llm_ros.calibrate.predictor_forms import DEFAULT_FORMS
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine.tokens import load_tokenizer
from flash_llm_ros.store.flash_store import FlashStore

_LOADS = (0.9, 0.8, 0.7)
_EXACT, _BY_DEFAULT = 'exact', 'sparse, by default'
_REGIMES = ((_EXACT, 'exact', {'lookup_tokens': 0}), (_BY_DEFAULT, 'sparse', {}),
            ('sparse, single columns', 'sparse', {'down_reads': 'scattered'}))


def calibrated(options: Namespace) -> FlashStore:
    """A store of the model, calibrated on the bench's own text where it is not calibrated yet."""
    path = model_store(options.model, options.neurons)
    ensure_store(options.model, path, neurons=options.neurons, calibrate=False)
    store = FlashStore.open(path)
    if store.manifest.calibration is None or not store.manifest.calibration.perplexity:
        with Steps() as steps, tempfile.TemporaryDirectory(dir=path.parent) as work:
            store = recalibrate(path, [calibration_text()], Path(work), CalibrationOptions(
                most_tokens=options.calibration_tokens, forms=DEFAULT_FORMS,
                measured_tokens=options.measured_tokens, threads=2), steps).store
    return store


def measure(options: Namespace) -> dict[str, object]:
    """All figures of one model."""
    model, text = options.model, held_out_text()
    if not word_runs(text).isdisjoint(word_runs(calibration_text())):
        raise ValueError('the held-out text shares eight neighbouring words with the text that '
                         'is calibrated with')
    load = [os.getloadavg()[0]]
    store = calibrated(options)
    tokens = load_tokenizer(store).encode(text)[:min(options.tokens, CONTEXT)]
    few = tokens[:options.traffic_tokens]
    calibration = store.manifest.calibration
    say('exact stores')
    exact = {neurons: exact_losses(
        store if neurons == options.neurons else FlashStore.open(ensure_store(
            model, model_store(model, neurons), neurons=neurons, calibrate=False)), tokens)
        for neurons in options.exact}
    base = exact[options.neurons]
    price = chunked_price if options.chunks else sparse_price
    prices = []
    for sparsity in sorted({*SPARSITIES, calibration.default_sparsity}):
        say(f'sparsity {sparsity:.0%}')
        prices.append(price(store, tokens, sparsity))
        found = _relative(_figures(prices[-1].losses, base))
        print(f'perplexity {found} of exact', file=sys.stderr, flush=True)
    say('prefetch')
    recall, precision = prefetch_recall(store, text, len(few))
    say('traffic')
    reads = [traffic(store, few, regime, mode, window, **more) for window in WINDOWS
             for regime, mode, more in _REGIMES]
    say('neurons that the predictor alone leaves out')
    half = tokens[:len(tokens) // 2]
    decided = {share: predicted_losses(store, half, share) for share in (1.0, *_LOADS)}
    return {'model': store.manifest.model.name, 'model_type': store.manifest.model.model_type,
            'neurons': options.neurons, 'tokens': len(tokens),
            'calibration_tokens': calibration.text_tokens,
            'exact': {neurons: _figures(losses, base) for neurons, losses in exact.items()},
            'to_fp16': {neurons: _figures(losses, exact['fp16'])
                        for neurons, losses in exact.items()} if 'fp16' in exact else {},
            'default_sparsity': calibration.default_sparsity,
            'sparse': [{'sparsity': one.sparsity, 'left_out': one.left_out,
                        **_figures(one.losses, base)} for one in prices],
            'prefetch_recall': recall, 'prefetch_precision': precision,
            'contribution_recall': calibration.mean_recall,
            'predictor_bytes': calibration.predictor_bytes, 'ffn_bytes': ffn_bytes(store),
            'traffic': [asdict(one) for one in reads],
            'predictor_decides': {str(share): _figures(losses, decided[1.0])
                                  for share, losses in decided.items()},
            'load_average': [*load, os.getloadavg()[0]]}


def _figures(losses: np.ndarray, base: np.ndarray) -> dict[str, float]:
    """Perplexity, and what it is relative to that of `base`, with a standard error."""
    growth = Growth.of(losses, base)
    return {'perplexity': float(np.exp(losses.mean())), 'relative': growth.relative,
            'error': growth.relative_error}


def say(what: str) -> None:
    print(f'measuring {what}', file=sys.stderr, flush=True)


def show(figures: dict) -> str:
    """Print the tables; returns the headline."""
    console, exact = Console(width=130), figures['exact']
    expected = EXPECTED.get(figures['model_type'], {})
    table = Table('regime', 'perplexity', f'relative to exact {figures["neurons"]}',
                  'relative to fp16', 'equal shares, other text', 'columns left out',
                  box=MARKDOWN)
    for neurons, row in exact.items():
        table.add_row(f'exact {neurons}', f'{row["perplexity"]:.3f}', _relative(row),
                      _relative(figures['to_fp16'].get(neurons)), '', '0 %')
    for row in figures['sparse']:
        sparsity = row['sparsity']
        mark = ', the default' if sparsity == figures['default_sparsity'] else ''
        table.add_row(f'sparse {sparsity:.0%}{mark}', f'{row["perplexity"]:.3f}', _relative(row),
                      '', str(expected.get(sparsity, '')), f'{row["left_out"]:.1%}')
    console.print(f'{figures["model"]}, {figures["tokens"]} tokens of held-out text '
                  f'(bench/held_out_text.py), calibrated on {figures["calibration_tokens"]} '
                  'others (bench/calibration_text.py); ± one standard error of paired differences; '
                  'load average '
                  + ' to '.join(f'{load:.1f}' for load in figures['load_average']))
    console.print(table)
    _show_traffic(console, figures)
    _, *rows = figures['predictor_decides'].items()
    console.print('The predictor alone decides which neurons are loaded, gate and up rows too: '
                  + ', '.join(f'{float(load):.0%} {_relative(row)}' for load, row in rows))
    default = next(row for row in figures['sparse']
                   if row['sparsity'] == figures['default_sparsity'])
    gain = {one['regime']: one for one in figures['traffic'] if one['window'] == 0.5}
    return (f'{figures["model"]}: perplexity relative to exact '
            + ', '.join(f'{_relative(row)} at {row["sparsity"]:.0%}' for row in figures['sparse'])
            + f'; by default {default["sparsity"]:.0%} at {_relative(default)}, which at a window '
            f'of 50 % reads {gain[_BY_DEFAULT]["read"]:.1%} instead of '
            f'{gain[_EXACT]["read"]:.1%} of the feed-forward bytes a token')


def _relative(row: dict | None) -> str:
    return '' if row is None else f'{row["relative"]:.3f} ± {row["error"]:.3f}'


def _show_traffic(console: Console, figures: dict) -> None:
    console.print(
        f'Prefetch at the default sparsity: {figures["prefetch_recall"]:.1%} of the columns used '
        f'were predicted ({figures["contribution_recall"]:.1%} of their contribution, in '
        f'calibration), {figures["prefetch_precision"]:.1%} of the predicted were used; '
        f'predictors of {figures["predictor_bytes"] / 1e6:.1f} MB, '
        f'{figures["predictor_bytes"] / figures["ffn_bytes"]:.1%} of the feed-forward bytes')
    table = Table('window, of the feed-forward bytes',
                  *(f'read per token, and time: {regime}' for regime, *_ in _REGIMES),
                  box=MARKDOWN)
    for window in WINDOWS:
        table.add_row(f'{window:.0%}', *(
            f'{one["read"]:.1%}, {one["milliseconds"]:.0f} ms' for one in figures['traffic']
            if one['window'] == window))
    console.print(table)


def run(options: Namespace) -> int:
    figures = measure(options)
    headline = show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + '\n')
    print(headline)
    return 0
