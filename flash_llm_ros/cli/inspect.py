"""`flash_llm inspect`: a flash store in one screen."""

from argparse import ArgumentParser, Namespace
from collections import Counter
from dataclasses import asdict
import json
from typing import Any

from flash_llm_ros.cli.main import fail
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.manifest import Calibration

EPILOG = """\
examples:
  flash_llm inspect /data/smollm2.store
  flash_llm inspect /data/smollm2.store --json | jq .geometry
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('store', help='a flash store')
    parser.add_argument('--json', action='store_true', help='print JSON for a script')


def run(options: Namespace) -> int:
    try:
        store = FlashStore.open(options.store)
    except FlashLlmError as error:
        return fail(error)
    if options.json:
        print(json.dumps(_facts(store), indent=2))
    else:
        _print(store)
    return 0


def _facts(store: FlashStore) -> dict[str, Any]:
    manifest = store.manifest
    return {'model': manifest.model.to_dict(), 'layout': manifest.layout,
            'neurons': manifest.geometry.formats_text, 'formats': manifest.geometry.formats,
            'resident': manifest.resident,
            'kv_cache': manifest.kv_cache, 'geometry': manifest.geometry.to_dict(),
            'calibration': manifest.calibration and asdict(manifest.calibration),
            'files': manifest.files, 'source': manifest.source, 'bytes': store.bytes}


def _print(store: FlashStore) -> None:
    manifest, geometry = store.manifest, store.manifest.geometry
    spec, calibration = manifest.model, manifest.calibration
    lines = {
        'model': f'{spec.name} ({spec.model_type}), {spec.layers} layers of width '
                 f'{spec.hidden_size}, each of {spec.feed_forward.text}',
        'attention': f'{spec.attention.heads} heads, {spec.attention.kv_heads} for keys and '
                     f'values, context of at most {spec.max_context} tokens',
        'vocabulary': f'{spec.embedding.vocab_size} tokens, head '
                      + ('tied to the embedding' if spec.embedding.tied else 'of its own'),
        'formats': f'neurons {geometry.formats_text}, attention {manifest.resident}, '
                   f'KV cache {manifest.kv_cache}',
        'flash': f'{manifest.layout} layout, {geometry.groups} groups of {geometry.group_bytes} '
                 f'bytes, {geometry.waste:.1%} padding',
        'calibration': _calibration(calibration),
        'files': f'{len(manifest.files)}, {store.bytes / 1e6:.1f} MB together',
    }
    for name, text in lines.items():
        print(f'{name:<12}{text}')


def _calibration(calibration: Calibration | None) -> str:
    if calibration is None:
        return 'none: mode exact only'
    kinds = Counter(f'{facts.kind} {facts.size}' for facts in calibration.predictors)
    return (f'{calibration.text_tokens} tokens: mode gated uses {calibration.active_share:.0%} of '
            f'the neurons, in {calibration.groups_share:.0%} of their groups, at '
            f"{calibration.perplexity_text} times mode exact's perplexity; predictors: "
            + ', '.join(f'{count} x {kind}' for kind, count in kinds.most_common()))
