"""A byte-level BPE tokenizer as sorted arrays, which take far less memory than hash maps.

They save 44 MB with Qwen2.5's 151,936 tokens (7.1 MB in place of 50.9) and 12 MB with SmolLM2's
49,152 (4.2 in place of 16.7): resident memory after opening `TextTokenizer` on them, or on the
store's tokenizer.json, and after `trim_heap`.

What cuts a text into words (normaliser, added tokens, patterns) stays with the `tokenizers`
library: `definition` is the same tokenizer.json with bytes for tokens and without merges.
"""

from collections.abc import Iterator
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_TOKENS = 1 << 22     # lists of so many are made; the largest vocabularies have 262,144
Tables = dict[str, NDArray[Any]]


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2)."""
    shown = {*range(ord('!'), ord('~') + 1), *range(0xa1, 0xad), *range(0xae, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(0x100)]


def tokenizer_tables(definition: str) -> Tables | None:
    """Tables of a tokenizer.json, or None when it is not a plain byte-level BPE.

    A broken one is left to the library, which says what is wrong with it.

    definition     uint8            JSON of the tokenizer that cuts words into bytes
    text           uint8            the bytes of all tokens, one after the other
    text_ends      int32 [tokens]   where each token ends in it
    special        uint8 [tokens]   1: not a part of an answer's text
    merge_pairs    int64 [merges]   left * tokens + right, ascending
    merge_ranks    int32 [merges]   the least is merged first
    merge_results  int32 [merges]
    whole_words    int32 [words]    tokens that a word is without any merge, in order of bytes
    """
    try:
        parts = json.loads(definition)
        return _tables(parts) if _byte_level(parts) else None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def _tables(parts: dict[str, Any]) -> Tables:
    model, added = parts['model'], parts.get('added_tokens') or []
    vocab: dict[str, int] = model['vocab']
    contents = {token['content']: token['id'] for token in added}
    count = max([*vocab.values(), *contents.values()]) + 1
    if count > MOST_TOKENS:
        raise ValueError(f'token {count - 1} is more than a vocabulary may have')
    alphabet = byte_alphabet()
    texts, special = _texts({**vocab, **contents}, alphabet, count), np.zeros(count, np.uint8)
    special[[token['id'] for token in added if token['special']]] = 1

    pairs = {}
    for rank, (left, right) in enumerate(_merges(model['merges'])):
        pairs[vocab[left] * count + vocab[right]] = rank, vocab[left + right]
    keys = np.array(sorted(pairs), np.int64)
    ranks, results = np.array([pairs[key] for key in keys.tolist()], np.int32).reshape(-1, 2).T
    words = sorted(vocab.values(), key=texts.__getitem__) if model.get('ignore_merges') else []

    small = {char: vocab[char] for char in alphabet if char in vocab} | contents
    parts |= {'truncation': None, 'padding': None, 'post_processor': None,
              'model': {**model, 'vocab': small, 'merges': [], 'ignore_merges': False}}
    return {'definition': np.frombuffer(json.dumps(parts).encode(), np.uint8),
            'text': np.frombuffer(b''.join(texts), np.uint8),
            'text_ends': np.cumsum([len(text) for text in texts], dtype=np.int32),
            'special': special, 'merge_pairs': keys,
            'merge_ranks': np.ascontiguousarray(ranks),
            'merge_results': np.ascontiguousarray(results),
            'whole_words': np.array(words, np.int32)}


def _byte_level(parts: dict[str, Any]) -> bool:
    model, decoder = parts['model'], parts.get('decoder') or {}
    last = parts.get('pre_tokenizer') or {}
    if last.get('type') == 'Sequence':
        last = last['pretokenizers'][-1]
    unusual = ('dropout', 'unk_token', 'continuing_subword_prefix', 'end_of_word_suffix',
               'byte_fallback')
    return (model.get('type') == 'BPE' and last.get('type') == decoder.get('type') == 'ByteLevel'
            and not any(model.get(name) for name in unusual))


def _merges(merges: list[Any]) -> Iterator[tuple[str, str]]:
    for merge in merges:
        left, right = merge.split(' ', 1) if isinstance(merge, str) else merge
        yield left, right


def _texts(vocab: dict[str, int], alphabet: list[str], count: int) -> list[bytes]:
    """The bytes of every token; none for numbers that are not in use."""
    byte_of = {char: byte for byte, char in enumerate(alphabet)}
    texts = [b''] * count
    for token, number in vocab.items():
        known = all(char in byte_of for char in token)
        texts[number] = bytes(byte_of[char] for char in token) if known else token.encode()
    return texts
