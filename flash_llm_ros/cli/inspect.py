"""`flash_llm inspect`: a flash store in one screen, or what a checkpoint would come to as one."""

from argparse import ArgumentParser, Namespace
from collections import Counter
from dataclasses import asdict
import json
from pathlib import Path
from typing import Any

from flash_llm_ros.cli.main import fail
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.engine.config import EngineConfig
from flash_llm_ros.engine.model.attention import attention_of
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.codec import NEURON_CODECS
from flash_llm_ros.store.device_profile import PROFILE, DeviceProfile
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import MANIFEST, NEURONS, FlashStore
from flash_llm_ros.store.manifest import Calibration, Manifest

EPILOG = """\
examples:
  flash_llm inspect /data/smollm2.store
  flash_llm inspect /data/smollm2.store --json | jq .geometry
  flash_llm inspect Qwen2.5-1.5B-Instruct/ --neurons int4 --budgets 600MB 1GB
  flash_llm inspect model.gguf --profile /data/smollm2.store    what this device will do

Of a checkpoint nothing is converted: what `convert` would refuse is refused here.
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('store', metavar='STORE|CHECKPOINT',
                        help='a flash store, or what one would be made of')
    parser.add_argument('--json', action='store_true', help='print JSON for a script')
    checkpoint = parser.add_argument_group('of a checkpoint')
    checkpoint.add_argument('--neurons', choices=NEURON_CODECS, default='int8',
                            help="as convert's (default: int8)")
    checkpoint.add_argument('--budgets', nargs='+', default=[], metavar='SIZE',
                            help='DRAM budgets (default: six, from the least to all of the model)')
    checkpoint.add_argument('--profile', type=Path, metavar='PATH',
                            help='a device profile, or a store that was probed, on the flash that '
                            'the store will be on')


def run(options: Namespace) -> int:
    try:
        path = Path(options.store)
        if _is_checkpoint(path):
            _checkpoint(path, options)
        elif options.json:
            print(json.dumps(_facts(FlashStore.open(path)), indent=2))
        else:
            _print(FlashStore.open(path))
    except (FlashLlmError, OSError, ValueError) as error:
        return fail(error)
    return 0


def _is_checkpoint(path: Path) -> bool:
    """A store whose conversion did not finish is none, nor is an empty folder."""
    if path.is_dir():
        return any(path.iterdir()) and not any((path / name).exists()
                                               for name in (MANIFEST, NEURONS))
    return path.is_file()


def _checkpoint(path: Path, options: Namespace) -> None:
    # What reads checkpoints is not installed on every robot.
    from flash_llm_ros.checkpoint.open import open_checkpoint
    from flash_llm_ros.convert.options import ConversionOptions
    from flash_llm_ros.report.prospect import prospect

    profile = options.profile and DeviceProfile.load(
        options.profile / PROFILE if options.profile.is_dir() else options.profile)
    budgets = [parse_byte_size('budgets', budget) for budget in options.budgets]
    found = prospect(open_checkpoint(path), ConversionOptions(neurons=options.neurons), profile,
                     budgets)
    manifest, spec = found.store.manifest, found.store.manifest.model
    if options.json:
        print(json.dumps({
            'model': spec.to_dict(), 'formats': manifest.geometry.formats,
            'resident': manifest.resident, 'parts': found.parts,
            'bytes': found.store.bytes, 'disk_bytes': found.disk_bytes, 'doubts': found.doubts,
            'floors': [asdict(floor) for floor in found.floors]}, indent=2))
        return
    _show(_model_lines(spec) | {
        'KV cache': _kv_cache(found.store),
        'formats': _formats(manifest),
        'parts': ', '.join(f'{name} {size / 1e6:.1f} MB' for name, size in found.parts.items()),
        'flash': f'about {found.store.bytes / 1e6:.0f} MB, up to {found.disk_bytes / 1e6:.0f} MB '
                 'while it is converted',
        'predictors': 'calibration makes some: mode gated may read less than is said here'
                      if spec.feed_forward.sparse_by_nature else 'none: mode exact only'})
    for doubt in found.doubts:
        print(f'{"doubt":<12}{doubt}')
    print('\nabout, for that context and one thread'
          + ('' if budgets else '; the first budget is the least'))
    print(f'{"budget":>10}{"read a token":>16}' + (f'{"at most":>16}' if profile else ''))
    for floor in found.floors:
        print(f'{floor.budget / 1e6:>7.0f} MB{floor.read_bytes / 1e6:>13.1f} MB'
              + (f'{_rate(floor.milliseconds):>16}' if profile else ''))


def _rate(milliseconds: float | None) -> str:
    """What reading allows; computing is not known before it is tried."""
    return f'{1e3 / milliseconds:.1f} tokens/s' if milliseconds else 'all is in DRAM'


def _facts(store: FlashStore) -> dict[str, Any]:
    manifest = store.manifest
    return {'model': manifest.model.to_dict(), 'layout': manifest.layout,
            'neurons': manifest.geometry.formats_text, 'formats': manifest.geometry.formats,
            'resident': manifest.resident,
            'geometry': manifest.geometry.to_dict(),
            'calibration': manifest.calibration and asdict(manifest.calibration),
            'files': manifest.files, 'source': manifest.source, 'bytes': store.bytes}


def _print(store: FlashStore) -> None:
    manifest, geometry = store.manifest, store.manifest.geometry
    spec, calibration = manifest.model, manifest.calibration
    _show(_model_lines(spec) | {
        'KV cache': _kv_cache(store),
        'formats': _formats(manifest),
        'flash': f'{manifest.layout} layout, {geometry.groups} groups of {geometry.group_bytes} '
                 f'bytes, {geometry.waste:.1%} padding',
        'calibration': _calibration(calibration),
        'files': f'{len(manifest.files)}, {store.bytes / 1e6:.1f} MB together'})


def _model_lines(spec: ModelSpec) -> dict[str, str]:
    return {
        'model': f'{spec.name} ({spec.model_type}), {spec.layers} layers of width '
                 f'{spec.hidden_size}, each of {spec.feed_forward.text}',
        'attention': f'{spec.attention.heads} heads, {spec.attention.kv_heads} for keys and '
                     f'values, context of at most {spec.max_context} tokens'
                     + ('' if spec.convolution is None else
                        f'; a convolution instead in {len(spec.convolution.layers)} layers'),
        'vocabulary': f'{spec.embedding.vocab_size} tokens, head '
                      + ('tied to the embedding' if spec.embedding.tied else 'of its own')}


def _kv_cache(store: FlashStore) -> str:
    context = min(EngineConfig.context_length, store.manifest.model.max_context)
    config = EngineConfig(store.path, 1, prefill_chunk=1)
    row = attention_of(store, config, context).cache_row()
    return f'{row.bytes / 1e6:.1f} MB for a context of {row.note}'


def _show(lines: dict[str, str]) -> None:
    for name, text in lines.items():
        print(f'{name:<12}{text}')


def _formats(manifest: Manifest) -> str:
    text = f'neurons {manifest.geometry.formats_text}'
    # Where the core computes attention, its matrices are among these.
    return text if manifest.model.core_attention else f'{text}, attention {manifest.resident}'


def _calibration(calibration: Calibration | None) -> str:
    if calibration is None:
        return 'none: mode exact only'
    kinds = Counter(f'{facts.kind} {facts.size}' for facts in calibration.predictors)
    return (f'{calibration.text_tokens} tokens: {calibration.mean_zeros:.0%} of the activations '
            f'are 0; mode gated uses {calibration.active_share:.0%} of '
            f'the neurons, in {calibration.groups_share:.0%} of their groups, at '
            f"{calibration.perplexity_text} times mode exact's perplexity; predictors: "
            + ', '.join(f'{count} x {kind}' for kind, count in kinds.most_common()))
