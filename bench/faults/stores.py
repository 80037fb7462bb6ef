"""The small stores that are damaged: random weights, so that every bit of them matters."""

from itertools import product
from pathlib import Path

from bench.support.planted_checkpoint import write_planted_checkpoint
from bench.support.tiny_checkpoint import converted, write_checkpoint
from flash_llm_ros.store.device_profile import PATTERNS, PROFILE, DeviceProfile, Measurement
from flash_llm_ros.store.flash_device import FlashDevice
from flash_llm_ros.store.flash_store import FlashStore

SIZE = {'hidden_size': 128, 'intermediate_size': 4096, 'num_attention_heads': 8,
        'num_key_value_heads': 4}

OTHER_OF_SHAPE = {'exact': 'other', 'gated': 'plain'}


def write_stores(folder: Path) -> None:
    """`exact` and `gated`; `other` and `plain` have their shapes; `small` ones; ten seconds.

    `plain` is the gated one before its neurons were put in order, which a lost write leaves.
    """
    for name, seed, options in (('small', 0, {}), ('small_other', 1, {}),
                                ('small_gated', 2, {'hidden_act': 'relu'})):
        write_checkpoint(folder / f'{name}.checkpoint', seed, **options)
        converted(folder / f'{name}.checkpoint', folder / name, most_tokens=512)
    for name, seed in (('exact', 0), ('other', 1)):
        write_checkpoint(folder / f'{name}.checkpoint', seed, **SIZE)
        converted(folder / f'{name}.checkpoint', folder / name)
    write_planted_checkpoint(folder / 'gated.checkpoint')
    _profile(converted(folder / 'gated.checkpoint', folder / 'gated'))
    converted(folder / 'gated.checkpoint', folder / 'plain', calibrate=False)


def _profile(store: FlashStore) -> None:
    """As of a usual device, so that reads are planned."""
    measured = [Measurement(pattern, size, depth, min(20_000 * depth, 2e9 / size))
                for pattern, size, depth in product(PATTERNS, (4096, 65536, 1048576), (1, 8, 64))]
    DeviceProfile(FlashDevice.of(store.neurons), 'threads', True, '2026-01-01T00:00:00+00:00',
                  store.neurons.stat().st_size, tuple(measured)).save(store.path / PROFILE)
