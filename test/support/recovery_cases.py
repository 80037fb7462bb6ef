"""What the tests of learned corrections share: stores for both modes, corrections, a planted tail.

In the planted checkpoint what most neurons add is nearly a linear map of rank PLANTED_RANK of the
block's input. Channel 0 of the residual stream is the same for every token and no layer writes to
it; these neurons' gate rows see nothing else, so that silu(gate) is about the same number always.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import write_checkpoint
import yaml

from flash_llm_ros.calibrate.ordered_store import OrderOptions, order_store
from flash_llm_ros.calibrate.tail_correction import LowRankMap
from flash_llm_ros.convert.calibration import CalibrationOptions, recalibrate
from flash_llm_ros.store.recovery import RecoveredSetting

TEXT = ' '.join(f'Boat {number} {verb} the {place} at {number % 12} and leaves.'
                for number, (verb, place) in enumerate(
                    (verb, place) for verb in ('enters', 'passes', 'sees', 'looks for')
                    for place in ('harbour', 'lighthouse', 'northern buoy', 'quay', 'long pier')))
SETTING = RecoveredSetting(1.25, 1.125, 0.01, 64)
PLANTED_RANK = 4
_CONSTANT = 12.0
_TAIL = 0.7                     # share of the neurons


def quiet(what: str, done: int, total: int) -> None:
    pass


def write_both_modes(source: Path, target: Path) -> Path:
    """A store in the order of importance, for shares 0.8 and 0.7, that is calibrated, too."""
    order_store(source, target, [TEXT], OrderOptions(
        shares=(1.0, 0.8, 0.7), head_rank=64, head_rows=32, most_tokens=256, measured_tokens=32),
        quiet)
    work = target.with_name('work')
    recalibrate(target, [TEXT], work, CalibrationOptions(most_tokens=512, measured_tokens=0),
                quiet)
    return target


def random_corrections(seed: int, rank: int = 5, size: float = 1.0) -> list[LowRankMap]:
    """Of the tiny model's three layers, as large as what its blocks add."""
    random = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    return [LowRankMap(matrix(rank, 64) / 8, size * matrix(64, rank) / rank ** 0.5,
                       size * 0.3 * matrix(64)) for _ in range(3)]


def recovery_file(store: Path) -> Path:
    """The one that the manifest names."""
    return store / yaml.safe_load((store / 'manifest.yaml').read_text())['recovery']['file']


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob('*') if path.is_file()}


def write_planted_tail(folder: Path) -> Path:
    """Its first neurons of each layer, _TAIL of them, are small and matter together."""
    write_checkpoint(folder, seed=3)
    tensors = dict(load_file(folder / 'model.safetensors'))
    random = np.random.default_rng(9)
    d, tail = 64, round(_TAIL * 256)
    tensors['model.embed_tokens.weight'][:, 0] = _CONSTANT
    for name, tensor in tensors.items():
        if name.endswith('layernorm.weight'):
            tensor[:] = 1
        if name.endswith('gate_proj.weight'):
            tensor[:, 0] = 0
            tensor[:tail] = 0
            tensor[:tail, 0] = 0.1
        if name.endswith('up_proj.weight'):
            outer = random.standard_normal((tail, PLANTED_RANK)) / PLANTED_RANK ** 0.5
            inner = random.standard_normal((PLANTED_RANK, d)) / d ** 0.5
            inner[:, 0] = 0
            tensor[:tail] = 0.02 * outer @ inner
        if name.endswith('down_proj.weight'):
            tensor[:, :tail] *= 150
        if name.endswith(('o_proj.weight', 'down_proj.weight')):
            tensor[0] = 0
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    return folder
