"""Writes a flash store, which gets its name when it is complete."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
import hashlib
import json
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store import flash_store as names
from flash_llm_ros.store.flash_store import FlashStore, file_sha256
from flash_llm_ros.store.geometry import (
    ATTENTION_SECTIONS,
    Geometry,
    Section,
    plan_geometry,
    spec_sections,
)
from flash_llm_ros.store.graph_builder import ExternalData
from flash_llm_ros.store.manifest import (
    Calibration,
    ExpertForesight,
    FileFacts,
    Manifest,
)
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.neuron_writer import NeuronWriter
from flash_llm_ros.store.output_file import write_file
from flash_llm_ros.store.publication import Publication
from flash_llm_ros.store.resident_layout import attention_layout, up_bias
from flash_llm_ros.store.stored_graphs import stored_graphs
from flash_llm_ros.store.stored_weights import bundles, layer_tensors, model_tensors
from flash_llm_ros.store.tensor_file import TensorFile, TensorFileWriter
from flash_llm_ros.store.tokenizer_tables import tokenizer_tables

ATTENTION_CODECS = {'q8': 'int8', 'q4': 'int4', 'fp32': 'fp16'}
Progress = Callable[[str, int, int], None]      # what, done, total
Rounded = Callable[[Section], NDArray[np.uint8]]


class WeightSource(Protocol):
    """What a store is written from; `checkpoint.Checkpoint` is one."""

    path: Path
    spec: ModelSpec
    tokenizer_json: str
    chat_template: str
    special_tokens: dict[str, str]      # bos_token and others that the template may name
    files: tuple[Path, ...]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) of a tensor by its canonical name, float32."""


@dataclass(frozen=True)
class StoreFormat:
    """What `convert` was asked for."""

    layout: str                 # split or bundled
    codecs: str | tuple[str, ...]   # int8, int4 or fp16: of all sections, or of each
    resident: str               # q8, q4 or fp32: of attention matrices
    block: int = 512            # the flash device's block in bytes


class StoreWriter:
    """One conversion: `write`, then what else there is to do, then `publish`.

    As a context manager it removes what was not published.
    """

    def __init__(self, source: WeightSource, target: Path, form: StoreFormat,
                 progress: Progress, replace: bool = False) -> None:
        self._publication = Publication(target, replace)
        self.path = self._publication.path
        self._weights, self._form, self._progress = source, form, progress
        self._hashes: dict[str, str] = {}
        self.geometry = planned_geometry(source.spec, form)
        self._order = ''

    def __enter__(self) -> 'StoreWriter':
        self._publication.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._publication.__exit__(*exception)

    def write(self) -> FlashStore:
        """Write all but the calibration; the result is usable in exact mode."""
        self._write_neurons()
        self._write_layers()
        write_file(self.path / names.TOKENIZER, self._weights.tokenizer_json)
        self._write_tokenizer_tables()
        write_file(self.path / names.CHAT_TEMPLATE, self._weights.chat_template)
        if special := self._weights.special_tokens:
            write_file(self.path / names.SPECIAL_TOKENS, json.dumps(special, indent=2) + '\n')
        return self.seal(None)

    def recode(self, form: StoreFormat, rounded: Mapping[str, Rounded]) -> FlashStore:
        """Write the neurons again, some sections, by label, as they were `rounded` meanwhile.

        A function of the section gives its uint8 [bundles, bundle_bytes]. The others are copied.
        """
        written = FlashStore.open(self.path)
        self._form, self.geometry = form, planned_geometry(self._weights.spec, form)
        kept = self.path / f'{names.NEURONS}.recoded'
        writer = self._neuron_writer(kept)
        with NeuronReader(written) as reader:
            for (section, copy), (before, _) in zip(self.geometry.runs(),
                                                    written.manifest.geometry.runs(), strict=True):
                parts = (iter([rounded[section.label](section)]) if section.label in rounded else
                         (part for _, part in reader.encoded(before, copy)))
                writer.write_encoded(section, parts, copy)
                self._neurons_done(section, copy)
        writer.close()
        return self._exchanged(kept, names.NEURONS)

    def reorder(self, orders: Sequence[NDArray[np.int32]]) -> FlashStore:
        """Write the neurons again in other orders, int32 [ffn] a layer: the first one first.

        Of the bundled layout.
        """
        written = FlashStore.open(self.path)
        self._order = hashlib.sha256(np.stack(orders).astype('<i4')).hexdigest()
        kept = self.path / f'{names.NEURONS}.reordered'
        writer = self._neuron_writer(kept)
        with NeuronReader(written) as reader:
            for section in self.geometry.sections:
                parts = (part for _, part in reader.encoded(section))
                if section.name == 'bundle':
                    parts = iter([np.concatenate(list(parts))[orders[section.layer]]])
                writer.write_encoded(section, parts)
                self._neurons_done(section)
        writer.close()
        if self._weights.spec.feed_forward.bias:
            self._reorder_biases(orders)
        return self._exchanged(kept, names.NEURONS)

    def _reorder_biases(self, orders: Sequence[NDArray[np.int32]]) -> None:
        """Biases of up rows are resident, in the order of the neurons."""
        kept = self.path / f'{names.RESIDENT}.reordered'
        layout = attention_layout(self._weights.spec, self._form.resident)
        order_of = {up_bias(layer): order for layer, order in enumerate(orders)}
        writer = TensorFileWriter(kept, layout)
        with TensorFile(self.path / names.RESIDENT) as tensors:
            for name in layout:
                tensor = tensors.read(name)
                writer.write(name, tensor[order_of[name]] if name in order_of else tensor)
        writer.close()
        kept.rename(self.path / names.RESIDENT)
        del self._hashes[names.RESIDENT]

    def _exchanged(self, new: Path, name: str) -> FlashStore:
        new.rename(self.path / name)
        del self._hashes[name]
        return self.seal(None)

    def seal(self, calibration: Calibration | None, foresight: ExpertForesight | None = None
             ) -> FlashStore:
        """Write the manifest over all files that are there, and open the result."""
        files = {}
        for path in sorted(path for path in self.path.rglob('*') if path.is_file()):
            relative = path.relative_to(self.path)
            name = relative.as_posix()
            if name != names.MANIFEST and names.RECORDING not in relative.parts:
                files[name] = FileFacts(bytes=path.stat().st_size, sha256=self._hash(name))
        self._manifest(files, calibration, foresight).save(self.path / names.MANIFEST)
        return FlashStore.open(self.path)

    def _hash(self, name: str) -> str:
        """Hash a file once."""
        if name not in self._hashes:
            self._hashes[name] = file_sha256(self.path / name)
        return self._hashes[name]

    def _manifest(self, files: dict[str, FileFacts], calibration: Calibration | None = None,
                  foresight: ExpertForesight | None = None) -> Manifest:
        form = self._form
        return Manifest(self._weights.spec, form.layout, form.resident, self.geometry,
                        self._order, files, self._source, calibration, foresight)

    def _neuron_writer(self, path: Path) -> NeuronWriter:
        return NeuronWriter(path, self.geometry, self._manifest({}).identity)

    @cached_property
    def _source(self) -> dict[str, str]:
        return {file.name: file_sha256(file) for file in self._weights.files}

    def publish(self) -> None:
        """Move the store to its place; errors as `Publication.publish`."""
        self._publication.publish()

    def _write_neurons(self) -> None:
        writer = self._neuron_writer(self.path / names.NEURONS)
        for section, copy in self.geometry.runs():
            writer.write(section, self._bundles(section, copy), copy)
            self._neurons_done(section, copy)
        writer.close()

    def _neurons_done(self, section: Section, copy: int = 0) -> None:
        done = section.first_group + copy * section.stride + section.groups
        self._progress('neurons', done, self.geometry.groups)

    def _rows(self, name: str, start: int = 0,
              stop: int | None = None) -> NDArray[np.float32]:
        """Rows of a tensor; raises ValueError when one is NaN or infinite."""
        rows = self._weights.rows(name, start, stop)
        if not np.isfinite(rows).all():
            raise ValueError(f'{self._weights.path}: tensor {name} holds NaN or infinity')
        return rows

    def _bundles(self, section: Section, copy: int) -> Iterator[NDArray[np.float32]]:
        return bundles(self._weights.spec, self._rows, section, copy)

    def _write_tokenizer_tables(self) -> None:
        tables = tokenizer_tables(self._weights.tokenizer_json)
        if tables is not None:
            writer = TensorFileWriter(self.path / names.TOKENIZER_TABLES,
                                      {name: (array.dtype, array.shape)
                                       for name, array in tables.items()})
            for name, array in tables.items():
                writer.write(name, array)
            writer.close()

    def _write_layers(self) -> None:
        spec, resident, rows = self._weights.spec, self._form.resident, self._rows
        layout = attention_layout(spec, resident)
        writer = TensorFileWriter(self.path / names.RESIDENT, layout)
        for layer in range(spec.layers):
            for name, tensor in layer_tensors(spec, rows, resident, layer):
                writer.write(name, tensor)
            if not spec.core_attention:
                self._progress('attention', layer + 1, spec.layers)
        for name, tensor in model_tensors(spec, rows, resident):
            writer.write(name, tensor)
        writer.close()
        data = ExternalData(names.RESIDENT, layout, writer.offsets)
        for name, graph in stored_graphs(spec, resident, data, rows):
            (self.path / name).parent.mkdir(exist_ok=True)
            write_file(self.path / name, graph)


def planned_geometry(spec: ModelSpec, form: StoreFormat) -> Geometry:
    """Where everything will lie in neurons.bin; ValueError for a block that does not go."""
    sections = spec_sections(form.layout, spec)
    codecs = [form.codecs] * len(sections) if isinstance(form.codecs, str) else form.codecs
    attention = ATTENTION_CODECS[form.resident]
    codecs = [attention if section.name in ATTENTION_SECTIONS else codec
              for section, codec in zip(sections, codecs, strict=True)]
    return plan_geometry(spec.hidden_size, codecs, sections, form.block)
