"""Calibrates stores of a model and prints what sparse mode then costs and gains."""

from argparse import Namespace
from dataclasses import asdict
import json
import os
import shutil
import sys

from calibration_quality import (
    CONTEXT,
    PIECE,
    WINDOWS,
    SparsePrice,
    SparseSetting,
    ffn_bytes,
    model_store,
    predicted_losses,
    prefetch_recall,
    prices,
    traffic,
)
from calibration_text import calibration_text, word_runs
from ensure_store import ensure_store
from held_out_text import held_out_text, other_text
import numpy as np
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.convert.calibration import CalibrationOptions, recalibrate
from flash_llm_ros.convert.perplexity_growth import Growth
from flash_llm_ros.convert.predictor_forms import DEFAULT_FORMS
from flash_llm_ros.engine.model.predictors import at_sparsity
from flash_llm_ros.engine.tail_correction import load_corrections
from flash_llm_ros.engine.text.tokenizer import load_tokenizer
from flash_llm_ros.store.flash_store import FlashStore

_LOADS = (0.9, 0.8, 0.7)
_EXACT, _BY_DEFAULT = 'exact', 'sparse, by default'
_REGIMES = ((_EXACT, 'exact', {'lookup_tokens': 0}), (_BY_DEFAULT, 'sparse', {}),
            ('sparse, single columns', 'sparse', {'down_reads': 'scattered'}))


def calibrated(options: Namespace) -> tuple[FlashStore, dict[str, list[float]]]:
    """A store of the model, calibrated on the bench's own text where it is not calibrated yet.

    And thresholds by sparsity that leave out the same share of every layer, of the same text; they
    are kept beside the store.
    """
    path = model_store(options.model, options.neurons)
    equal = path.with_suffix('.equal_shares.json')
    ensure_store(options.model, path, neurons=options.neurons, calibrate=False)
    store = FlashStore.open(path)
    if store.manifest.calibration is None or not equal.exists():
        work = path.with_suffix('.work')
        with Steps() as steps:
            found = recalibrate(path, [calibration_text()], work, CalibrationOptions(
                most_tokens=options.calibration_tokens, forms=DEFAULT_FORMS,
                measured_tokens=options.measured_tokens, threads=2), steps)
        store = found.store
        equal.write_text(json.dumps(found.thresholds.uniform_thresholds))
        shutil.rmtree(work)
    return store, json.loads(equal.read_text())


def measure(options: Namespace) -> dict[str, object]:
    """All figures of one model."""
    model, text, seen = options.model, held_out_text(), word_runs(calibration_text())
    if not (word_runs(text) | word_runs(other_text())).isdisjoint(seen):
        raise ValueError('the held-out text shares eight neighbouring words with the text that '
                         'is calibrated with')
    load = [os.getloadavg()[0]]
    store, equal = calibrated(options)
    tokenizer = load_tokenizer(store)
    tokens = tokenizer.encode(text)[:options.tokens]
    calibration = store.manifest.calibration
    default = calibration.default_sparsity
    exact, sparse = _prices(store, equal, tokens, sorted({*options.sparsities, default}))
    others = tokenizer.encode(other_text())[:options.tokens]
    say('the other text')
    _, elsewhere = _prices(store, equal, others, sorted({0.7, default}))
    say('exact stores')
    exacts = {neurons: exact if neurons == options.neurons else _exact_losses(FlashStore.open(
        ensure_store(model, model_store(model, neurons), neurons=neurons, calibrate=False)),
        tokens) for neurons in options.exact}
    return {'model': store.manifest.model.name, 'neurons': options.neurons, 'tokens': len(tokens),
            'calibration_tokens': calibration.text_tokens,
            'exact': {neurons: _figures(losses, exact) for neurons, losses in exacts.items()},
            'to_fp16': {neurons: _figures(losses, exacts['fp16'])
                        for neurons, losses in exacts.items()} if 'fp16' in exacts else {},
            'default_sparsity': default, 'sparse': sparse,
            'other_text': {'tokens': len(others), 'sparse': elsewhere},
            **(_gains(store, text, tokens, options.traffic_tokens)
               if options.traffic_tokens else {}),
            'load_average': [*load, os.getloadavg()[0]]}


def _gains(store: FlashStore, text: str, tokens: list[int], count: int) -> dict[str, object]:
    """Prefetch and traffic on the first `count` tokens, and what a predictor alone would cost."""
    calibration, few = store.manifest.calibration, tokens[:count]
    say('prefetch')
    recall, precision = prefetch_recall(store, text, len(few))
    say('traffic')
    reads = [traffic(store, few, regime, mode, window, **more) for window in WINDOWS
             for regime, mode, more in _REGIMES]
    say('neurons that the predictor alone leaves out')
    half = tokens[:min(len(tokens), CONTEXT) // 2]
    decided = {share: predicted_losses(store, half, share) for share in (1.0, *_LOADS)}
    return {'prefetch_recall': recall, 'prefetch_precision': precision,
            'contribution_recall': calibration.mean_recall,
            'predictor_bytes': calibration.predictor_bytes, 'ffn_bytes': ffn_bytes(store),
            'traffic': [asdict(one) for one in reads],
            'predictor_decides': {str(share): _figures(losses, decided[1.0])
                                  for share, losses in decided.items()}}


def _prices(store: FlashStore, equal: dict[str, list[float]], tokens: list[int],
            sparsities: list[float]) -> tuple[np.ndarray, list[dict[str, object]]]:
    """Exact mode's losses; and by sparsity what it costs as calibrated, and with equal shares.

    And with the corrections that `flash_llm recover` gave the store, where it did; and as answers
    are made, the second half of every piece after the first, which is read exactly.
    """
    settings, rows = {}, []
    for sparsity in sparsities:
        ours, theirs = (at_sparsity(table, sparsity) for table in
                        (store.manifest.calibration.thresholds, equal))
        place = store.sparse_corrections(sparsity)
        corrections = load_corrections(store, place) if place else None
        settings |= {f'{sparsity}': SparseSetting(ours),
                     f'{sparsity} answer': SparseSetting(ours, corrections,
                                                        min(PIECE, len(tokens)) // 2)}
        if not np.allclose(ours, theirs):
            settings[f'{sparsity} equal'] = SparseSetting(theirs)
        if corrections:
            settings[f'{sparsity} corrected'] = SparseSetting(ours, corrections)
    with Steps() as steps:
        exact, found = prices(store, tokens, settings, steps)
    for sparsity in sparsities:
        ours = found[f'{sparsity}']
        theirs = found.get(f'{sparsity} equal', ours)
        corrected = found.get(f'{sparsity} corrected')
        rows.append({'sparsity': sparsity, **_price(ours), 'equal_shares': _price(theirs),
                     'answer': _price(found[f'{sparsity} answer']),
                     'to_equal_shares': _figures(ours.losses, theirs.losses),
                     'divergence_saved': _mean(theirs.divergences - ours.divergences),
                     'corrected': corrected and _price(corrected)})
    return exact, rows


def _exact_losses(store: FlashStore, tokens: list[int]) -> np.ndarray:
    with Steps() as steps:
        return prices(store, tokens, {}, steps)[0]


def _price(found: SparsePrice) -> dict[str, object]:
    return {**_figures(found.losses, found.exact), 'left_out': found.left_out,
            'divergence': _mean(found.divergences)}


def _mean(values: np.ndarray) -> tuple[float, float]:
    """And its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def _figures(losses: np.ndarray, base: np.ndarray) -> dict[str, float]:
    """Perplexity, and what it is relative to that of `base`, with a standard error."""
    growth = Growth.of(losses, base)
    return {'perplexity': float(np.exp(losses.mean())), 'relative': growth.relative,
            'error': growth.relative_error}


def say(what: str) -> None:
    print(f'measuring {what}', file=sys.stderr, flush=True)


def show(figures: dict) -> str:
    """Print the tables; returns the headline."""
    console = Console(width=230)
    table = Table('regime', 'perplexity', f'relative to exact {figures["neurons"]}',
                  'relative to fp16', 'equal shares', 'relative to equal shares',
                  'divergence, nats', 'equal shares', 'saved', 'columns left out',
                  'with learned corrections', 'divergence', 'of an answer', box=MARKDOWN)
    for neurons, row in figures['exact'].items():
        table.add_row(f'exact {neurons}', f'{row["perplexity"]:.3f}', _relative(row),
                      _relative(figures['to_fp16'].get(neurons)), *[''] * 5, '0 %', *[''] * 3)
    for row in figures['sparse']:
        table.add_row(*_row(_regime(figures, row), row))
    other = figures['other_text']
    for row in other['sparse']:
        table.add_row(*_row(f'{_regime(figures, row)}, on other text', row))
    console.print(f'{figures["model"]}, {figures["tokens"]} tokens of held-out text and '
                  f'{other["tokens"]} of another (bench/held_out_text.py), calibrated on '
                  f'{figures["calibration_tokens"]} others (bench/calibration_text.py); ± one '
                  'standard error of paired differences; load average '
                  + ' to '.join(f'{load:.1f}' for load in figures['load_average']))
    console.print(table)
    usual = next(row for row in other['sparse']
                 if row['sparsity'] == figures['default_sparsity'])
    return (f'{figures["model"]}: perplexity relative to exact '
            + ', '.join(f'{_relative(row)} at {row["sparsity"]:.0%}' for row in figures['sparse'])
            + ''.join(f', {_relative(row["corrected"])} with learned corrections at '
                      f'{row["sparsity"]:.0%}' for row in figures['sparse'] if row['corrected'])
            + f'; by default {usual["sparsity"]:.0%} at {_relative(usual)} on other text'
            + (_show_gains(console, figures) if 'traffic' in figures else ''))


def _show_gains(console: Console, figures: dict) -> str:
    """Returns the end of the headline."""
    _show_traffic(console, figures)
    _, *rows = figures['predictor_decides'].items()
    console.print('The predictor alone decides which neurons are loaded, gate and up rows too: '
                  + ', '.join(f'{float(load):.0%} {_relative(row)}' for load, row in rows))
    gain = {one['regime']: one for one in figures['traffic'] if one['window'] == 0.5}
    return (f', which at a window of 50 % reads {gain[_BY_DEFAULT]["read"]:.1%} instead of '
            f'{gain[_EXACT]["read"]:.1%} of the feed-forward bytes a token')


def _regime(figures: dict, row: dict) -> str:
    default = ', the default' if row['sparsity'] == figures['default_sparsity'] else ''
    return f'sparse {row["sparsity"]:.0%}{default}'


def _row(name: str, row: dict) -> list[str]:
    equal, corrected = row['equal_shares'], row['corrected']
    return [name, f'{row["perplexity"]:.3f}', _relative(row), '', _relative(equal),
            _relative(row['to_equal_shares']), f'{row["divergence"][0]:.4f}',
            f'{equal["divergence"][0]:.4f}',
            '{:.4f} ± {:.4f}'.format(*row['divergence_saved']),
            f'{row["left_out"]:.1%} / {equal["left_out"]:.1%}', _relative(corrected),
            f'{corrected["divergence"][0]:.4f}' if corrected else '', _relative(row['answer'])]


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
