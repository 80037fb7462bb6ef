"""GGUF files, every quantisation type that the gguf library dequantises."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.families import family
from flash_llm_ros.checkpoint.gguf_header import check_header
from flash_llm_ros.checkpoint.gguf_tokenizer import LLAMA3_SPLITS, tokenizer_json
from flash_llm_ros.model_spec import ModelSpec


class GgufCheckpoint(Checkpoint):
    """One .gguf file; tensors stay on disk until their rows are asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, (path,)
        try:
            check_header(path)
            reader = gguf.GGUFReader(path)
            fields = {name: field.contents() for name, field in reader.fields.items()}
        except Exception as error:      # the library raises whatever the bytes lead it to
            raise CheckpointError(f'{path} is not a readable GGUF file: {error}') from None
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        try:
            self.family = family(fields.get('general.architecture', ''))
            self.spec = self._spec(fields)
            self.tokenizer_json = tokenizer_json(fields)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            what = f'the metadata lacks {error}' if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f'{path}: {what}') from None
        self.chat_template = fields.get('tokenizer.chat_template', '')
        self.check_tensors()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(n) for n in reversed(self._tensor(name).shape))

    def stored_names(self) -> Iterable[str]:
        return self._tensors

    def _stored_rows(self, name: str, start: int, stop: int | None) -> NDArray[np.float32]:
        tensor = self._tensor(name)
        if heads := self.tensors[name].interleaved_heads:
            return self._in_halves(tensor, heads)[start:stop]
        return self._dequantised(tensor, slice(start, stop))

    def _dequantised(self, tensor: Any, rows: slice) -> NDArray[np.float32]:
        try:
            values = gguf.dequantize(np.asarray(tensor.data[rows]), tensor.tensor_type)
        except NotImplementedError:
            raise CheckpointError(f'{self.path}: tensor {tensor.name} is of type '
                                  f'{tensor.tensor_type.name}, which the gguf library does not '
                                  'dequantise') from None
        return np.ascontiguousarray(values, dtype=np.float32)

    def _in_halves(self, tensor: Any, heads: int) -> NDArray[np.float32]:
        """Rows that turn together are neighbours in GGUF, half a head apart in the engine."""
        rows = self._dequantised(tensor, slice(None))
        pairs = rows.reshape(heads, len(rows) // heads // 2, 2, -1)
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)

    def _tensor(self, name: str) -> Any:
        key = self.tensors[name].gguf
        if key not in self._tensors:
            raise CheckpointError(f'{self.path}: tensor {key} is missing')
        return self._tensors[key]

    def _spec(self, fields: dict[str, Any]) -> ModelSpec:
        config = self.family.config_of_gguf(fields)
        self.scales = self.family.scales(config)
        ends = [fields.get(f'tokenizer.ggml.{key}_token_id') for key in ('eos', 'eot')]
        adds = fields.get('tokenizer.ggml.add_bos_token',   # else what llama.cpp assumes
                          fields.get('tokenizer.ggml.model') == 'llama'
                          or fields.get('tokenizer.ggml.pre') in LLAMA3_SPLITS)
        spec = self.family.spec(
            config, fields.get('general.name') or self.path.stem,
            tied='output.weight' not in self._tensors,
            end_tokens=tuple(dict.fromkeys(int(end) for end in ends if end is not None)),
            begin_token=int(fields['tokenizer.ggml.bos_token_id']) if adds else None)
        if (factors := self._tensors.get('rope_freqs.weight')) is None:
            return spec
        return replace(spec, positions=replace(
            spec.positions, factors=tuple(float(factor) for factor in factors.data.ravel())))
