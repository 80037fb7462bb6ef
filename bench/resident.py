"""The resident part of one layer in every form that ONNX Runtime can run: time, memory, error.

    python bench/resident.py MODEL [--layer N] [--threads 1 2] [--repeats 40] [--json PATH]

A layer's norms and attention as they stand in a store: matrices in 32, 8 or 4 bits (q4 with an
offset per block), keys and values in 32 or 16 bits, with IO binding (as the engine runs it) or
copied in and out, and with ONNX Runtime's own graph optimisations, which the engine leaves out.
Forms take turns, a token and a chunk of 32 each time, behind 256 tokens of context. The error is
that of the layer's FFN input beside the 32-bit form.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, field
import json
import os
from pathlib import Path
import sys
import tempfile
import time

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from flash_llm_ros.checkpoint.checkpoint import Checkpoint, open_checkpoint
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine.memory.process_memory import resident_bytes, trim_heap
from flash_llm_ros.engine.model.graph_loader import Feeds, GraphLoader
from flash_llm_ros.engine.model.rotary import rotary_tables
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.layer_graphs import ExternalData, layer_graph
from flash_llm_ros.store.resident_layout import matrix_layout, matrix_tensors
from flash_llm_ros.store.tensor_file import TensorFile, TensorFileWriter

_CONTEXT, _BEHIND, _CHUNK = 512, 256, 32
_KV = {'fp16': np.float16, 'fp32': np.float32}
FORMS = (('fp32', 'fp32'), ('fp32', 'fp16'), ('q8', 'fp32'), ('q8', 'fp16'), ('q4', 'fp16'))
AS_BUILT = ('q4', 'fp16')       # measured in other ways, too


class OptimisedLoader(GraphLoader):
    """With all of ONNX Runtime's graph optimisations."""

    def _options(self) -> ort.SessionOptions:
        options = super()._options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        return options


@dataclass
class Case:
    """A form that is loaded, and its times in seconds by number of tokens."""

    name: str
    threads: int
    session: ort.InferenceSession
    feeds: dict[int, Feeds]
    binding: bool
    bytes: int
    loader: GraphLoader         # owns the memory that the session reads
    error: float = 0.0
    seconds: dict[int, list[float]] = field(default_factory=lambda: {1: [], _CHUNK: []})

    def run(self, tokens: int) -> np.ndarray:
        """Once, timed; returns the FFN's input."""
        feeds = self.feeds[tokens]
        if not self.binding:
            begin = time.perf_counter()
            found = self.session.run(['ffn_input', 'residual', 'present_key', 'present_value'],
                                     feeds)[0]
            self.seconds[tokens].append(time.perf_counter() - begin)
            return found
        hidden = feeds['hidden']
        out = {'ffn_input': np.empty_like(hidden), 'residual': np.empty_like(hidden),
               'present_key': feeds['past_key'], 'present_value': feeds['past_value']}
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, array in out.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        begin = time.perf_counter()
        self.session.run_with_iobinding(binding)
        self.seconds[tokens].append(time.perf_counter() - begin)
        return out['ffn_input']


def feeds_of(spec: ModelSpec, kv: str, tokens: int) -> Feeds:
    """The same made-up numbers for every form."""
    random = np.random.default_rng(0)
    cos, sin = rotary_tables(spec, _CONTEXT, _KV[kv])
    cache = random.standard_normal((2, 1, spec.kv_heads, _CONTEXT, spec.head_dim)).astype(_KV[kv])
    hidden = random.standard_normal((1, tokens, spec.hidden_size)).astype(np.float32)
    return {'hidden': hidden, 'past_key': cache[0], 'past_value': cache[1],
            'last_position': np.array([_BEHIND + tokens - 1], np.int32),
            'total_length': np.array([_BEHIND + tokens], np.int32), 'cos': cos, 'sin': sin}


def write(checkpoint: Checkpoint, layer: int, resident: str, kv: str, folder: Path) -> bytes:
    """The layer's matrices to a tensor file; returns its graph."""
    spec, prefix = checkpoint.spec, f'layers.{layer}'
    matrices = {'qkv': np.concatenate([checkpoint.rows(f'{prefix}.{part}') for part in 'qkv']),
                'o': checkpoint.rows(f'{prefix}.o')}
    layout = {}
    for name, matrix in matrices.items():
        layout |= matrix_layout(f'{prefix}.{name}', *matrix.shape, resident)
    writer = TensorFileWriter(folder / 'resident.safetensors', layout)
    graph = layer_graph(spec, layer, resident, kv,
                        ExternalData('resident.safetensors', layout, writer.offsets),
                        checkpoint.rows)
    for name, matrix in matrices.items():
        for key, tensor in matrix_tensors(f'{prefix}.{name}', matrix, resident).items():
            writer.write(key, tensor)
    writer.close()
    return graph


def load(checkpoint: Checkpoint, layer: int, form: tuple[str, str], threads: int, folder: Path,
         *, binding: bool = True, loader: type[GraphLoader] = GraphLoader,
         suffix: str = '') -> Case:
    resident, kv = form
    graph = write(checkpoint, layer, resident, kv, folder)
    feeds = {tokens: feeds_of(checkpoint.spec, kv, tokens) for tokens in (1, _CHUNK)}
    trim_heap()
    before = resident_bytes()
    loading = loader(str(folder), threads, prepack=resident != 'fp32')
    with TensorFile(folder / 'resident.safetensors') as tensors:
        session = loading.load(graph, tensors, f'layers.{layer}.', lambda: feeds[1])
    trim_heap()
    return Case(f'{resident}, KV {kv}{suffix}', threads, session, feeds, binding,
                resident_bytes() - before, loading)


def measure(options: Namespace) -> list[Case]:
    checkpoint = open_checkpoint(options.model)
    layer = checkpoint.spec.layers // 2 if options.layer is None else options.layer
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as folder, Steps() as steps:
        for form in FORMS:      # code that runs for the first time is not a layer's memory
            load(checkpoint, layer, form, 1, Path(folder)).run(1)
        for threads in options.threads:
            for form in FORMS:
                cases.append(load(checkpoint, layer, form, threads, Path(folder)))
            cases.append(load(checkpoint, layer, AS_BUILT, threads, Path(folder), binding=False,
                              suffix=', copied in and out'))
            cases.append(load(checkpoint, layer, AS_BUILT, threads, Path(folder),
                              loader=OptimisedLoader, suffix=', graph optimised'))
        exact = {tokens: cases[0].run(tokens) for tokens in (1, _CHUNK)}
        for case in cases:
            found = case.run(_CHUNK)
            case.error = float(np.linalg.norm(found - exact[_CHUNK])
                               / np.linalg.norm(exact[_CHUNK]))
            for times in case.seconds.values():     # the first run of a session is another one
                times.clear()
        for repeat in range(options.repeats):
            for case in cases:
                for tokens in case.seconds:
                    case.run(tokens)
            steps('taking turns', repeat + 1, options.repeats)
    return cases


def facts(case: Case) -> dict[str, object]:
    times = {f'ms_{tokens}': {'median': float(np.median(found)) * 1e3,
                              'p95': float(np.quantile(found, 0.95)) * 1e3}
             for tokens, found in case.seconds.items()}
    return {'form': case.name, 'threads': case.threads, 'bytes': case.bytes, 'error': case.error,
            **times}


def show(found: list[dict], layers: int) -> None:
    table = Table('form', 'threads', '1 token, ms (p95)', f'{_CHUNK} tokens, ms (p95)',
                  'MB, all layers', 'relative error')
    for row in found:
        table.add_row(row['form'], str(row['threads']),
                      *(f'{row[key]["median"]:.3f} ({row[key]["p95"]:.3f})'
                        for key in ('ms_1', f'ms_{_CHUNK}')),
                      f'{row["bytes"] * layers / 1e6:.1f}', f'{row["error"]:.5f}')
    Console(width=120).print(table)


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model', type=Path, help='a .gguf file or a Hugging Face folder')
    parser.add_argument('--layer', type=int, help='(default: the middle one)')
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--repeats', type=int, default=40)
    parser.add_argument('--json', type=Path, help='write the figures there')
    options = parser.parse_args()
    found = [facts(case) for case in measure(options)]
    show(found, open_checkpoint(options.model).spec.layers)
    if options.json:
        options.json.write_text(json.dumps(
            {'load': os.getloadavg()[0], 'forms': found}, indent=2) + '\n')
    quickest = min(found, key=lambda row: row['ms_1']['median'])
    built = next(row for row in found if row['form'] == 'q4, KV fp16')
    print(f'load average {os.getloadavg()[0]:.1f}; a token is quickest with {quickest["form"]}, '
          f'{quickest["threads"]} thread(s): {quickest["ms_1"]["median"]:.3f} ms a layer; '
          f'q4, KV fp16 with 1 thread: {built["ms_1"]["median"]:.3f} ms')
    return 0


if __name__ == '__main__':
    sys.exit(main())
