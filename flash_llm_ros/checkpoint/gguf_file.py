"""GGUF files, every quantisation type that the gguf library dequantises."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.checkpoint.checkpoint import Checkpoint, in_halves
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.families import family_of_gguf
from flash_llm_ros.checkpoint.families.family import Tensor
from flash_llm_ros.checkpoint.foreign import check_fields
from flash_llm_ros.checkpoint.gguf_parts import GgufParts
from flash_llm_ros.checkpoint.gguf_tokenizer import (
    begins_by_default,
    control_tokens,
    doubt,
    special_tokens,
    token_number,
    tokenizer_json,
)
from flash_llm_ros.checkpoint.special_tokens import NO_END, end_tokens
from flash_llm_ros.model_spec import ModelSpec

_ENDS = ('eos', 'eot', 'eom', 'fim_pad', 'fim_rep', 'fim_sep')
# What config.json would say, and the tensors that say it here.
# Settings that files have no words for: whether there is this tensor.
_BY_TENSOR = {'use_qkv_bias': 'blk.0.attn_q.bias', 'attention_bias': 'blk.0.attn_output.bias',
              'mlp_bias': 'blk.0.ffn_up.bias', 'use_qk_norm': 'blk.0.attn_q_norm.weight'}
_FACTORS = {'factors': 'rope_freqs.weight', 'long_factor': 'rope_factors_long.weight',
            'short_factor': 'rope_factors_short.weight'}


class GgufCheckpoint(Checkpoint):
    """A .gguf file, or one of the files of a model that was split."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts = GgufParts(path)
        self.files, fields = self._parts.files, self._parts.fields
        try:
            check_fields(fields)
            self.family = family_of_gguf(fields)
            self.spec = self._spec(fields)
            self.tokenizer_json = tokenizer_json(fields)
            self.special_tokens = special_tokens(fields)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            what = f'the metadata lacks {error}' if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f'{path}: {what}') from None
        self.chat_template = fields.get('tokenizer.chat_template', '')
        self.doubts = tuple(filter(None, (doubt(fields), '' if self.spec.end_tokens else NO_END)))
        self.check_tensors()

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return {name: replace(tensor, first_row=0, rows_stored=0) if tensor.gguf_apart else tensor
                for name, tensor in super().tensors.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._parts.shape(self._stored_name(name))

    def stored_names(self) -> Iterable[str]:
        return self._parts.names

    def _stored_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        stored = self._stored_name(name)
        if heads := self.tensors[name].interleaved_heads:
            return in_halves(self._parts.rows(stored), heads)[start:stop]
        return self._parts.rows(stored, start, stop)

    def _stored_name(self, name: str) -> str:
        stored = self.tensors[name].gguf
        if stored not in self._parts.names:
            raise CheckpointError(f'{self.path}: tensor {stored} is missing')
        return stored

    def _spec(self, fields: dict[str, Any]) -> ModelSpec:
        config = self.family.config_of_gguf(fields)
        config |= {name: tensor in self._parts.names for name, tensor in _BY_TENSOR.items()}
        config['rope_scaling'] |= {name: self._parts.rows(tensor).tolist() for name, tensor in
                                   _FACTORS.items() if tensor in self._parts.names}
        if 'long_factor' in config['rope_scaling']:     # the metadata need not say it
            config['rope_scaling'] |= {'rope_type': 'longrope', 'attention_factor': 1.0}
        self.scales = self.family.scales(config)
        named = [token_number(fields, name) for name in _ENDS]
        adds = fields.get('tokenizer.ggml.add_bos_token', begins_by_default(fields))
        begin = token_number(fields, 'bos')
        if adds and begin is None:
            raise KeyError('tokenizer.ggml.bos_token_id')
        return self.family.spec(
            config, fields.get('general.name') or self.path.stem,
            tied='output.weight' not in self._parts.names,
            end_tokens=end_tokens((end for end in named if end is not None),
                                  control_tokens(fields)),
            begin_token=begin if adds else None)
