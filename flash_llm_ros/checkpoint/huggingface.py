"""Hugging Face folders: config.json, sharded safetensors, tokenizer.json."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
import json
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  teaches NumPy the bfloat16 of safetensors
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from flash_llm_ros.checkpoint.checkpoint import Checkpoint, in_halves
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.families import family
from flash_llm_ros.checkpoint.families.family import Tensor
from flash_llm_ros.checkpoint.foreign import (
    check_config,
    damage,
    missing_tokenizer,
    missing_weights,
)
from flash_llm_ros.checkpoint.mxfp4 import mxfp4_values
from flash_llm_ros.checkpoint.special_tokens import NO_END, NO_TOKEN, TEMPLATE_NAMES, end_tokens
from flash_llm_ros.exits import EXITS
from flash_llm_ros.model_spec import ModelSpec

_DTYPES = ('F64', 'F32', 'F16', 'BF16')
_BYTES = ('U8',)
_HEAD = 'lm_head.weight'
_INNER = ('embed_tokens.', 'layers.', 'norm.', 'embedding_norm.', 'decoder.')     # without a head
_COMPARED = 4096                    # rows at a time
# As transformers has it since version 5.
_NOT_TIED = (f'tie_word_embeddings is true, but {_HEAD} is not the embedding: it is taken as the '
             'head that it is')


def _full_name(stored: str) -> str:
    """Of a tensor of the text model, as the whole of such a model has it."""
    name = stored.replace('language_model.', '', 1)
    return f'model.{name}' if name.startswith(_INNER) else name


def _content(token: object) -> str | None:
    """The text of a token as the files have it: plain, or in an object."""
    if isinstance(token, dict):
        token = token.get('content')
    return token if isinstance(token, str) else None


def _of_text(config: dict[str, Any]) -> dict[str, Any]:
    """Models of pictures and text have the settings of their text model in an object."""
    inner = config.get('text_config')
    return {**config, **inner} if isinstance(inner, dict) and 'model_type' in inner else config


class HuggingFaceCheckpoint(Checkpoint):
    """A folder as `save_pretrained` writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        config = _of_text(self._json('config.json'))
        try:
            check_config(path, config)
            self.family = family(config.get('model_type', ''))
            files = self._tensor_index()
            self._stored = {_full_name(name): name for name in files}
            if twice := files.keys() - self._stored.values():
                raise ValueError(f'tensor {min(twice)} is there twice, under another name, too')
            self._index = index = {name: files[stored] for name, stored in self._stored.items()}
            self.tokenizer_json = self._text('tokenizer.json')
            tokenizer = self._tokenizer()
            self.spec = self._spec(config, _HEAD in index, tokenizer)
            self.special_tokens = dict(self._special_tokens(config, tokenizer))
        except CheckpointError:
            raise
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            what = f'lacks {error}' if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f'{path / "config.json"}: {what}') from None
        self.chat_template = self._chat_template()
        self.doubts = () if self.spec.end_tokens else (NO_END,)
        self._shards = {file: self._open(file) for file in sorted(set(index.values()))}
        if self.spec.embedding.tied and _HEAD in index:
            self._tie()
        self.files = tuple(path / file for file in
                           ('config.json', 'tokenizer.json', *self._shards))
        self.check_tensors()

    def _tie(self) -> None:
        """The embedding is the head where that alone is there; it is none where both differ."""
        embedding = next(tensor.huggingface for tensor in self.family.model_tensors(self.spec)
                         if tensor.name == 'embedding')
        if embedding not in self._index:
            self._index[embedding] = self._index.pop(_HEAD)
            self._stored[embedding] = self._stored.pop(_HEAD)
        elif not self._same(embedding, _HEAD):
            embedding = replace(self.spec.embedding, tied=False)
            self.spec = replace(self.spec, embedding=embedding)
            self.doubts += (_NOT_TIED,)

    def shape(self, name: str) -> tuple[int, ...]:
        tensor = self.tensors[name]
        if (shape := self._fused_shape(tensor)) is not None:
            fits = (*tensor.shape[:1], tensor.fused_rows, *tensor.shape[2:])
            return tensor.shape if shape == fits else shape
        if not tensor.split:
            shape = tuple(self._numbers(self._key(tensor)).get_shape())
            more = len(shape) > len(tensor.shape)   # a vector as a matrix of one row, a channel
            return tuple(count for count in shape if count > 1) if more else shape
        shapes = {tuple(self._numbers(part).get_shape()) for part in tensor.huggingface_names}
        wrong = shapes - {tensor.shape[1:]}
        return (tensor.shape[0], *wrong.pop()) if wrong else tensor.shape

    def stored_names(self) -> Iterable[str]:
        return self._index

    def _stored_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        tensor = self.tensors[name]
        if self._fused_shape(tensor) is not None:
            return self._fused_rows(tensor, start, stop)
        if not tensor.split:
            rows = self._whole_rows(tensor, start, stop)
            return rows + np.float32(plus) if (plus := tensor.huggingface_plus) else rows
        return np.stack([_float32(self._numbers(part)[:])
                         for part in tensor.huggingface_names[start:stop]])

    def _fused_shape(self, tensor: Tensor) -> tuple[int, ...] | None:
        """[experts, fused rows, in], or [experts, fused rows]; None where experts are split."""
        if tensor.blocks in self._index:
            packed, scales = (tuple(self._slice(name, _BYTES).get_shape())
                              for name in (tensor.blocks, tensor.scales))
            if packed != (*scales, 16):
                raise CheckpointError(f'{self.path}: tensor {tensor.blocks} has shape {packed}, '
                                      f'its scales have {scales}; each needs 16 bytes')
            return (*scales[:-1], 32 * scales[-1])
        if tensor.fused not in self._index:
            return None
        shape = tuple(self._numbers(tensor.fused).get_shape())
        return (shape[0], *shape[:0:-1]) if tensor.fused_turned else shape

    def _fused_rows(self, tensor: Tensor, start: int, stop: int) -> NDArray[np.float32]:
        """Experts [start, stop) of it."""
        rows = tensor.fused_slice
        if tensor.blocks in self._index:
            return mxfp4_values(*(self._slice(name, _BYTES)[start:stop][:, rows]
                                  for name in (tensor.blocks, tensor.scales)))
        numbers = self._numbers(tensor.fused)
        if tensor.fused_turned:
            return _float32(numbers[start:stop].swapaxes(1, 2)[:, rows])
        if rows.step == 1:
            return _float32(numbers[start:stop, rows.start:rows.stop])
        return _float32(numbers[start:stop][:, rows])

    def _whole_rows(self, tensor: Tensor, start: int, stop: int) -> NDArray[np.float32]:
        numbers = self._numbers(self._key(tensor))
        if tensor.huggingface_interleaved:
            return in_halves(_float32(numbers[:]), tensor.interleaved_heads)[start:stop]
        if numbers.get_shape()[0] == 1 and stop > 1:        # a vector as a matrix of one row
            return _float32(numbers[0:1, start:stop][0])
        return _float32(numbers[start:stop]).reshape(stop - start, *tensor.shape[1:])

    def _key(self, tensor: Tensor) -> str:
        now = tensor.huggingface_now
        return now if now in self._index else tensor.huggingface

    def _numbers(self, key: str) -> Any:
        """A tensor of the folder that can be sliced; CheckpointError where it is quantised."""
        return self._slice(key, _DTYPES)

    def _slice(self, key: str, dtypes: tuple[str, ...]) -> Any:
        if key not in self._index:
            raise CheckpointError(f'{self.path}: tensor {key} is missing')
        try:
            part = self._shards[self._index[key]].get_slice(self._stored[key])
        except SafetensorError as error:
            raise CheckpointError(f'{self.path}: tensor {key}: {error}') from None
        if (dtype := part.get_dtype()) not in dtypes:
            raise CheckpointError(f'{self.path}: tensor {key} is {dtype}; it must be one of '
                                  f'{", ".join(dtypes)}')
        return part

    def _spec(self, config: dict[str, Any], has_head: bool, tokenizer: Tokenizer) -> ModelSpec:
        tied = config.get('tie_word_embeddings', self.family.tied_by_default)
        if not (tied or has_head):
            raise ValueError('tie_word_embeddings is false, or missing, and there is no tensor '
                             'lm_head.weight; either it must be true, or the folder lacks a file')
        config = {**self.family.defaults, **config}
        self.scales = self.family.scales(config)
        return self.family.spec(config, self.path.resolve().name, tied,
                                self._end_tokens(config, tokenizer),
                                self._begin_token(config, tokenizer))

    def _same(self, *names: str) -> bool:
        one, other = (self._numbers(name) for name in names)
        rows = one.get_shape()[0]
        return one.get_shape() == other.get_shape() and all(
            np.array_equal(one[start:stop], other[start:stop]) for start, stop in
            ((start, min(start + _COMPARED, rows)) for start in range(0, rows, _COMPARED)))

    def _end_tokens(self, config: dict[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
        named = self._optional_json('generation_config.json').get('eos_token_id')
        named = config.get('eos_token_id') if named is None else named
        named = named if isinstance(named, list) else [] if named is None else [named]
        named = [number for number in named if number not in NO_TOKEN]
        text = _content(self._optional_json('tokenizer_config.json').get('eos_token'))
        if text is not None and (number := tokenizer.token_to_id(text)) is not None:
            named = [*named, number]
        return end_tokens(named, {token.content: number for number, token
                                  in tokenizer.get_added_tokens_decoder().items()
                                  if token.special})

    def _special_tokens(self, config: dict[str, Any], tokenizer: Tokenizer
                        ) -> Iterator[tuple[str, str]]:
        """By tokenizer_config.json, by special_tokens_map.json, by the numbers of config.json."""
        texts = [self._optional_json(file) for file in
                 ('tokenizer_config.json', 'special_tokens_map.json')]
        for name in TEMPLATE_NAMES:
            found = [_content(file.get(name)) for file in texts]
            number = config.get(f'{name}_id')
            if isinstance(number, int) and number not in NO_TOKEN:
                found.append(tokenizer.id_to_token(number))
            if text := next(filter(None, found), None):
                yield name, text

    def _begin_token(self, config: dict[str, Any], tokenizer: Tokenizer) -> int | None:
        """The settings decide; where they are silent, what the tokenizer itself puts in front."""
        settings = self._optional_json('tokenizer_config.json')
        adds, begin = settings.get('add_bos_token'), config.get('bos_token_id')
        begin = None if begin in NO_TOKEN else begin
        if adds is None:
            with self._tokenizer_errors():
                whole = tokenizer.encode('a').ids
                text = tokenizer.encode('a', add_special_tokens=False).ids
            return whole[0] if text and whole[1:1 + len(text)] == text else None
        if begin is None and (text := _content(settings.get('bos_token'))) is not None:
            begin = tokenizer.token_to_id(text)
        return begin if adds else None

    def _tokenizer(self) -> Tokenizer:
        with self._tokenizer_errors():
            return Tokenizer.from_str(self.tokenizer_json)

    @contextmanager
    def _tokenizer_errors(self) -> Iterator[None]:
        try:
            yield
        except EXITS:
            raise
        except BaseException as error:  # the library raises bare Exception, and panics
            raise CheckpointError(f'{self.path / "tokenizer.json"}: {error}') from None

    def _tensor_index(self) -> dict[str, str]:
        """Tensor name -> file. One file goes before several, as in transformers."""
        file, several = 'model.safetensors', 'model.safetensors.index.json'
        if (self.path / file).is_file():
            return dict.fromkeys(self._open(file).keys(), file)
        if not (self.path / several).is_file():
            raise CheckpointError(f'{self.path / file}: {missing_weights(self.path)}')
        index = self._json(several).get('weight_map')
        if not isinstance(index, dict) or not all(isinstance(f, str) for f in index.values()):
            raise CheckpointError(f'{self.path / several}: weight_map must map names of tensors '
                                  'to names of files')
        return index

    def _open(self, file: str) -> Any:
        path = self.path / file
        try:
            if (what := damage(path)) is not None:
                raise CheckpointError(f'{path} {what}')
            return safe_open(path, 'np')
        except OSError as error:
            raise CheckpointError(f'{path}: {error.strerror}; copy or download the whole folder'
                                  ) from None
        except SafetensorError as error:
            raise CheckpointError(f'{path} is cut off or damaged ({error}); copy or download it '
                                  'again') from None

    def _chat_template(self) -> str:
        if (self.path / 'chat_template.jinja').is_file():
            return self._text('chat_template.jinja')
        template = self._optional_json('tokenizer_config.json').get('chat_template') or ''
        try:
            if isinstance(template, list):      # several named ones: the plain one counts
                named = {entry['name']: entry['template'] for entry in template}
                template = named.get('default', '')
        except (KeyError, TypeError):
            template = None
        if not isinstance(template, str):
            raise CheckpointError(f'{self.path / "tokenizer_config.json"}: chat_template must be '
                                  'text, or a list of objects with name and template')
        return template

    def _text(self, file: str) -> str:
        path = self.path / file
        if file == 'tokenizer.json' and not path.exists():
            raise CheckpointError(f'{path}: {missing_tokenizer(self.path)}')
        try:
            if (what := damage(path)) is not None:
                raise CheckpointError(f'{path} {what}')
            return path.read_text(encoding='utf-8')
        except OSError as error:
            raise CheckpointError(f'{self.path / file}: {error.strerror}') from None
        except UnicodeDecodeError as error:
            raise CheckpointError(f'{self.path / file}: {error}') from None

    def _optional_json(self, file: str) -> dict[str, Any]:
        return self._json(file) if (self.path / file).is_file() else {}

    def _json(self, file: str) -> dict[str, Any]:
        try:
            data = json.loads(self._text(file))
        except (json.JSONDecodeError, RecursionError) as error:
            raise CheckpointError(f'{self.path / file}: {error}') from None
        if not isinstance(data, dict):
            raise CheckpointError(f'{self.path / file} must hold a JSON object')
        return data


def _float32(rows: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(rows, dtype=np.float32)
