"""One HTML page without scripts or links to elsewhere."""

from collections.abc import Sequence
from html import escape

from flash_llm_ros.report import plots
from flash_llm_ros.report.advice import recommended
from flash_llm_ros.report.figures import BudgetFloor
from flash_llm_ros.store.device_profile import DeviceProfile
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import Geometry
from flash_llm_ros.store.manifest import Calibration, Manifest

_STYLE = '''
body { font: 16px/1.5 sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } th, td { padding: .2em .8em; border-bottom: 1px solid #ddd; }
th { text-align: left; } td.number { text-align: right; }
svg { max-width: 100%; height: auto; }
.missing { color: #777; } pre { background: #f5f5f5; padding: 1em; overflow-x: auto; }
'''


def page(store: FlashStore, floors: Sequence[BudgetFloor], profile: DeviceProfile | None) -> str:
    """The whole page; `profile` is None where the device was not probed."""
    manifest = store.manifest
    name = escape(manifest.model.name)
    sections = {'Settings for a budget': _advice(floors),
                'Time of a token in mode exact': _floors(floors),
                'What mode auto takes': _auto(floors),
                'Device': _device(profile), 'Calibration': _calibration(manifest),
                'Groups': _geometry(manifest.geometry)}
    body = f'<h1>{name}</h1>\n{_model(store)}\n' + '\n'.join(
        f'<h2>{title}</h2>\n{content}' for title, content in sections.items())
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<title>{name}: a flash store</title><style>{_STYLE}</style></head>'
            f'<body>\n{body}\n</body></html>\n')


def _model(store: FlashStore) -> str:
    manifest = store.manifest
    spec, geometry = manifest.model, manifest.geometry
    return (f'<p>{spec.layers} layers of {escape(spec.feed_forward.text)}, '
            f'neurons {escape(geometry.formats_text)}, '
            + ('' if spec.core_attention else f'attention {escape(manifest.resident)}, ')
            + f'{escape(manifest.layout)} layout; {store.bytes / 1e6:.1f} MB on flash.</p>')


def _advice(floors: Sequence[BudgetFloor]) -> str:
    blocks = []
    for floor in floors:
        lines = [line for setting in recommended(floor)
                 for line in (f'    # {setting.reason}', f'    {setting.name}: {setting.value}')]
        blocks.append('<pre>' + escape('/**:\n  ros__parameters:\n' + '\n'.join(lines)) + '</pre>')
    return '\n'.join(blocks) or _missing('Every budget that was given is below the least.')


def _floors(floors: Sequence[BudgetFloor]) -> str:
    if not floors:
        return _missing('Every budget that was given is below the least.')
    rows = [(f'{floor.budget / 1e6:.0f} MB', f'{floor.window_bytes / 1e6:.1f} MB',
             f'{floor.read_bytes / 1e6:.1f} MB',
             '' if floor.milliseconds is None else f'{floor.milliseconds:.1f} ms')
            for floor in floors]
    drawn = ''
    if len(floors) > 1:
        drawn = plots.reads_by_budget(floors)
        if floors[0].milliseconds is not None:
            drawn += plots.time_by_budget(floors)
    return ('<p>Every neuron is read or in the window. Reading alone, which computing overlaps; '
            '<code>flash_llm bench</code> measures both.</p>' + drawn
            + _table(('DRAM budget', 'window', 'read for a token', 'takes at least'), rows))


def _auto(floors: Sequence[BudgetFloor]) -> str:
    if not floors:
        return _missing('Every budget that was given is below the least.')
    if len({floor.auto for floor in floors}) == 1:
        return f'<p>Under each of these budgets {escape(floors[0].auto)}.</p>'
    return '<ul>' + ''.join(f'<li>{floor.budget / 1e6:.0f} MB: {escape(floor.auto)}</li>'
                            for floor in floors) + '</ul>'


def _device(profile: DeviceProfile | None) -> str:
    if profile is None:
        return _missing('It was not probed: flash_llm probe STORE.')
    rows = [(each.pattern, str(each.read_bytes), str(each.in_flight),
             f'{each.bytes_per_second / 1e6:.0f}', f'{each.reads_per_second:.0f}')
            for each in profile.measurements]
    return (f'<p>{escape(str(profile.device))}, by {escape(profile.reader)}, measured at '
            f'{escape(profile.measured_at)}.</p>' + plots.scattered_reads(profile) + _table(
                ('reads', 'bytes', 'in flight', 'MB/s', 'reads/s'), rows))


def _calibration(manifest: Manifest) -> str:
    calibration = manifest.calibration
    if calibration is None:
        return _missing('None: every neuron is used, in every mode.')
    return _price(calibration) + plots.predictors_by_layer(calibration) + _table(
        ('layer', 'zeros', 'predictor', 'recall', 'precision'),
        [(str(layer), f'{facts.zeros:.1%}', f'{facts.kind} {facts.size}', f'{facts.recall:.1%}',
          f'{facts.precision:.1%}') for layer, facts in enumerate(calibration.predictors)])


def _price(calibration: Calibration) -> str:
    return (f'<p>{calibration.mean_zeros:.1%} of the activations are 0. Mode gated, on held-out '
            f'tokens of {calibration.text_tokens}: '
            f'{calibration.active_share:.1%} of the neurons are predicted, in '
            f'{calibration.groups_share:.1%} of their groups; perplexity is '
            f'{calibration.perplexity_text} times that of mode exact. The predictors take '
            f'{calibration.predictor_bytes / 1e6:.1f} MB of DRAM.</p>')


def _geometry(geometry: Geometry) -> str:
    rows = [(section.label, str(section.bundles), section.codec.name,
             str(section.bundles_per_group), str(section.all_groups))
            for section in geometry.sections]
    return (f'<p>{geometry.groups} groups of {geometry.group_bytes} bytes, '
            f'{geometry.waste:.1%} of them padding.</p>' + _table(
                ('section', 'bundles', 'format', 'to a group', 'groups'), rows))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = ''.join(f'<th>{escape(name)}</th>' for name in head)
    lines = ''.join('<tr>' + ''.join(f'<td class="number">{escape(cell)}</td>' for cell in row)
                    + '</tr>' for row in rows)
    return f'<table><tr>{cells}</tr>{lines}</table>'


def _missing(why: str) -> str:
    return f'<p class="missing">{escape(why)}</p>'
