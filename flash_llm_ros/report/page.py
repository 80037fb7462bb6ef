"""One HTML page without scripts or links to elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from flash_llm_ros.report import plots
from flash_llm_ros.report.advice import Setting, recommended
from flash_llm_ros.report.figures import BudgetFloor, LayerActivity
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.manifest import Manifest

_STYLE = '''
body { font: 16px/1.5 sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } th, td { padding: .2em .8em; border-bottom: 1px solid #ddd; }
th { text-align: left; } td.number { text-align: right; } svg { max-width: 100%; height: auto; }
.missing { color: #777; } pre { background: #f5f5f5; padding: 1em; overflow-x: auto; }
'''


@dataclass(frozen=True)
class Findings:
    """What was found out; empty is what could not be, `missing` says why."""

    floors: Sequence[BudgetFloor]
    activities: Sequence[LayerActivity] = ()
    hit_rates: dict[str, list[float]] = field(default_factory=dict)
    trace_tokens: int = 0
    missing: dict[str, str] = field(default_factory=dict)


def page(store: FlashStore, found: Findings) -> str:
    """The whole page."""
    manifest, calibration = store.manifest, store.manifest.calibration
    spec, geometry = manifest.model, manifest.geometry
    parts = [
        f'<h1>{escape(spec.name)}</h1>',
        f'<p>{spec.layers} layers of {spec.feed_forward.size} neurons '
        f'({escape(spec.feed_forward.activation)}), '
        f'{escape(geometry.formats_text)}, {escape(manifest.layout)} layout; '
        f'{store.bytes / 1e6:.1f} MB on flash in groups of {geometry.group_bytes} bytes.</p>']
    for title, content, why in (
            ('Settings for a budget', _advice(store, found.floors), 'floors'),
            ('Time of a token', _floors(found.floors), 'floors'),
            ('Perplexity against sparsity',
             plots.perplexity(calibration) + _price(store) if calibration is not None
             and calibration.perplexity else '', 'perplexity'),
            ('Learned corrections', _recovery(manifest), 'recovery'),
            ('Predictors', plots.recall(calibration) + _predictors(store)
             if calibration is not None and calibration.predictors else '', 'predictors'),
            ('How often neurons are used',
             plots.frequencies(found.activities) + _tokens(found) if found.activities else '',
             'activities'),
            ('Closest friends', plots.friends(found.activities) + _friends(found)
             if found.activities else '', 'activities'),
            ('Hits in a window', plots.hits(found.hit_rates) if found.hit_rates else '',
             'hit_rates')):
        parts.append(f'<h2>{title}</h2>')
        parts.append(content or f'<p class="missing">{escape(found.missing.get(why, ""))}</p>')
    title = escape(f'{spec.name}: a flash store')
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<style>{_STYLE}</style></head><body>\n' + '\n'.join(parts) + '\n</body></html>\n')


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = ''.join(f'<th>{escape(name)}</th>' for name in head)
    lines = ''.join('<tr>' + ''.join(f'<td class="number">{escape(cell)}</td>' for cell in row)
                    + '</tr>' for row in rows)
    return f'<table><tr>{cells}</tr>{lines}</table>'


def _advice(store: FlashStore, floors: Sequence[BudgetFloor]) -> str:
    return '\n'.join(_yaml(recommended(store.manifest, floor)) for floor in floors)


def _yaml(settings: Sequence[Setting]) -> str:
    lines = []
    for setting in settings:
        lines += [f'    # {setting.reason}', f'    {setting.name}: {setting.value}']
    return '<pre>' + escape('/**:\n  ros__parameters:\n' + '\n'.join(lines)) + '</pre>'


def _floors(floors: Sequence[BudgetFloor]) -> str:
    if not floors:
        return ''
    rows = [(f'{floor.budget / 1e6:.0f} MB', f'{floor.window_bytes / 1e6:.1f} MB',
             f'{floor.read_bytes / 1e6:.1f} MB',
             '' if floor.milliseconds is None else f'{floor.milliseconds:.1f} ms')
            for floor in floors]
    known = floors[0].milliseconds is not None
    note = ('<p>Exact mode, from the device profile: reading alone, which computing overlaps. '
            '<code>flash_llm bench</code> measures both.</p>' if known else
            '<p class="missing">The device was not probed: <code>flash_llm probe STORE</code>.</p>')
    return (plots.floors(floors) if known else '') + _table(
        ('DRAM budget', 'window', 'read for a token', 'takes at least'), rows) + note


def _price(store: FlashStore) -> str:
    found = store.manifest.calibration.perplexity
    return _table(('left out', 'perplexity', 'relative to exact'),
                  [(f'{float(key):.0%}', f'{found[key]:.3f}', f'{found[key] / found["0.00"]:.3f}')
                   for key in sorted(found, key=float)]) + (
        '<p>On held-out tokens of the calibration text.</p>')


def _recovery(manifest: Manifest) -> str:
    if manifest.layout != 'split':
        return '<p class="missing">Only models with gated SiLU need them.</p>'
    if (recovery := manifest.recovery) is None:
        return '<p class="missing">None: <code>flash_llm recover STORE</code>.</p>'
    rows = [(f'{mode} {name}', f'{setting.before:.3f}',
             f'{setting.after:.3f} ± {setting.error:.3f}')
            for mode in ('sparse', 'aggressive')
            for name, setting in sorted(getattr(recovery, mode).items())]
    return _table(('mode and setting', 'perplexity relative to exact', 'with the correction'),
                  rows) + '<p>On held-out tokens of the text that they were learned from.</p>'


def _predictors(store: FlashStore) -> str:
    calibration = store.manifest.calibration
    return (f'<p>{calibration.predictor_bytes / 1e6:.1f} MB together; mean recall '
            f'{calibration.mean_recall:.1%} of the active contribution, on held-out tokens.</p>')


def _tokens(found: Findings) -> str:
    return f'<p>{found.trace_tokens} tokens in sparse mode.</p>'


def _friends(found: Findings) -> str:
    mean = sum(activity.friend_rank for activity in found.activities) / len(found.activities)
    return ('<p>The closest friend of a neuron is the one that most often is used with it. The '
            f'mean friend stands at {mean:.0%} of the neurons ordered from hot to cold: bundling '
            'friends would bundle the hottest neurons with everybody ("LLM in a flash", appendix '
            'D).</p>')
