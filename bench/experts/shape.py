"""The feed-forward blocks of a mixture of experts' shape, with random weights in 4 bits: tokens per
second, hits and reads by routing, beside Belady's hits and what the device takes for the bytes.

Attention is not computed. Every expert has the same weights, in places and with checksums of its
own. Routing is planted (bench.experts.planted_routing), or without any memory: the worst case.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
import sys
from tempfile import TemporaryDirectory
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.experts.planted_routing import planted_routing
from bench.support.command import Report, at_least, byte_size, command, run, show
from bench.window.replayer import at_best
from bench.window.trace import NeuronTrace
from flash_llm_ros import _native
from flash_llm_ros.engine.memory.window import EXPERTS_HALF_LIFE
from flash_llm_ros.model_spec import ExpertsSpec
from flash_llm_ros.store.geometry import Geometry, model_sections, plan_geometry
from flash_llm_ros.store.neuron_writer import NeuronWriter

_PROMPT = 128           # tokens of a chunk


@dataclass(frozen=True)
class Shape:
    layers: int
    dim: int
    neurons: int
    experts: int
    active: int


SHAPES = {'granite-3.1-1b': Shape(24, 1024, 512, 32, 8),
          'granite-3.1-3b': Shape(32, 1536, 512, 40, 8),
          'olmoe': Shape(16, 2048, 1024, 64, 8),
          'qwen3-30b': Shape(48, 2048, 768, 128, 8)}


def written(path: Path, shape: Shape) -> Geometry:
    """Write the neurons; OSError where they do not fit."""
    geometry = plan_geometry(shape.dim, 'int4', model_sections(
        'split', shape.dim, shape.layers, shape.neurons, 32, True, experts=ExpertsSpec(
            shape.experts, shape.active)))
    if (free := disk_usage(path.parent).free) < 2 * geometry.file_bytes:
        raise OSError(f'{path.parent} has {free / 1e9:.1f} GB free; twice the '
                      f'{geometry.file_bytes / 1e9:.1f} GB of the neurons must be there')
    random, encoded = np.random.default_rng(0), {}
    for section in geometry.sections:
        if section.name not in encoded:
            rows = random.standard_normal((section.bundles * section.rows, section.codec.dim))
            rows *= section.codec.dim ** -0.5
            encoded[section.name] = section.codec.encode(rows.astype(np.float32)).reshape(
                -1, section.bundle_bytes)
    writer = NeuronWriter(path, geometry, 0)
    for section, copy in geometry.runs():
        writer.write_encoded(section, [encoded[section.name]], copy)
    writer.close()
    return geometry


class Blocks:
    """All layers behind a window of so many bytes, all of it cache."""

    def __init__(self, path: Path, geometry: Geometry, shape: Shape, window: int,
                 threads: int) -> None:
        self.slots = min(window // geometry.group_bytes, geometry.groups)
        self._shape = shape
        self.core: Any = _native.NeuronCore(path, geometry.group_bytes, geometry.groups, shape.dim,
                                            self.slots, threads=threads, lock_memory=False)
        self._sections = [self.core.add_section(
            part.first_group, part.bundles, part.bundles_per_group, part.rows, part.codec.name,
            part.codec.dim, part.copies, part.stride) for part in geometry.sections]
        self.core.set_cache(self.slots, EXPERTS_HALF_LIFE)

    def run(self, used: NDArray[np.bool_]) -> float:
        """Tokens in one pass, bool [tokens, layers, experts]; returns seconds."""
        tokens, active = len(used), self._shape.active
        x = np.ones((tokens, self._shape.dim), np.float32)
        out = np.zeros_like(x)
        weights = np.full((tokens, active), 1 / active, np.float32)
        ids = np.nonzero(used)[2].reshape(tokens, -1, active)
        begin = time.perf_counter()
        for layer in range(self._shape.layers):
            self.core.experts(*self._sections[2 * layer:2 * layer + 2], x,
                              np.ascontiguousarray(ids[:, layer]), weights, out, 'silu')
        return time.perf_counter() - begin


def measured(blocks: Blocks, shape: Shape, geometry: Geometry, used: NDArray[np.bool_],
             rate: float) -> dict[str, float]:
    """Of the second half of the tokens; the first fills the window."""
    half = len(used) // 2
    for token in used[:half]:
        blocks.run(token[None])
    before = blocks.core.stats()
    seconds = np.array([blocks.run(token[None]) for token in used[half:]])
    found = {name: count - before[name] for name, count in blocks.core.stats().items()}
    trace = NeuronTrace('', 1, used).groups()
    held = blocks.slots // geometry.sections[0].stride
    first, whole = at_best(held, trace[:half]), at_best(held, trace)
    tokens, read = len(seconds), found['flash_bytes'] / len(seconds)
    return {'tokens_per_second': 1 / float(np.median(seconds)),
            'p50': 1e3 * float(np.quantile(seconds, 0.5)),
            'p95': 1e3 * float(np.quantile(seconds, 0.95)),
            'hits': found['hits'] / (found['hits'] + found['misses']),
            'belady': (whole.hits - first.hits) / (tokens * shape.layers * shape.active),
            'megabytes': read / 1e6, 'reads': found['flash_reads'] / tokens,
            'device_ms': 1e3 * read / rate,
            'prompt_tokens_per_second': _PROMPT / blocks.run(
                planted_routing(_PROMPT, shape.layers, shape.experts, shape.active, seed=1))}


def measure(options: Namespace) -> Report:
    shape = SHAPES[options.shape]
    with TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder, 'neurons.bin')
        geometry = written(path, shape)
        device = _native.measure_reads(path, min(1 << 20, geometry.file_bytes), 8, 1.0, 'random')
        rate = device['bytes'] / device['seconds']
        results = {}
        for name, traced in (
                ('planted', planted_routing(options.tokens, shape.layers, shape.experts,
                                            shape.active)),
                ('no memory', planted_routing(options.tokens, shape.layers, shape.experts,
                                              shape.active, heat=0, memory=0))):
            blocks = Blocks(path, geometry, shape, options.window, options.threads)
            results[name] = measured(blocks, shape, geometry, traced, rate)
            blocks.core.close()
    show(('routing', 'tokens/s', 'p50 ms', 'p95 ms', 'hits', "Belady's", 'MB/token', 'reads/token',
          'the device alone ms', f'prompt tokens/s at {_PROMPT}'),
         [(name, f'{found["tokens_per_second"]:.1f}', f'{found["p50"]:.1f}', f'{found["p95"]:.1f}',
           f'{found["hits"]:.3f}', f'{found["belady"]:.3f}', f'{found["megabytes"]:.1f}',
           f'{found["reads"]:.0f}', f'{found["device_ms"]:.1f}',
           f'{found["prompt_tokens_per_second"]:.1f}') for name, found in results.items()],
         f'{options.shape}: {geometry.file_bytes / 1e9:.2f} GB, window '
         f'{options.window / 1e6:.0f} MB, device {rate / 1e6:.0f} MB/s')
    planted = results['planted']
    return Report(results, f'{options.shape}: {planted["tokens_per_second"]:.1f} tokens/s, '
                  f"{planted['hits'] / planted['belady']:.2f} of Belady's hits")


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('shape', choices=SHAPES)
    result.add_argument('window', type=byte_size, help='bytes of experts in DRAM, such as 200MB')
    result.add_argument('--tokens', type=at_least(4), default=64)
    result.add_argument('--threads', type=at_least(1), default=1)
    result.add_argument('--folder', type=Path, help='where the neurons lie meanwhile')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
