"""The bytes of tokens are those of the text that they stand for, in every kind of vocabulary."""

import functools
from pathlib import Path

import gguf
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
from test_gguf_tokenizer import sentence_piece_fields

from flash_llm_ros.checkpoint.gguf_tokenizer import tokenizer_json
from flash_llm_ros.engine.request.constrained_decoding import ConstrainedDecoding
from flash_llm_ros.engine.request.constraint import Constraint, ConstraintKind
from flash_llm_ros.engine.text.tokenizer import LibraryTokenizer, Vocabulary, load_tokenizer
from flash_llm_ros.store.flash_store import FlashStore

TEXT = st.text(st.sampled_from('  etaohlr!é日xß👍\n"{}:,0<|im_end|>'), max_size=24)


@pytest.fixture(scope='module')
def vocabularies(real_store: Path, real_gguf: Path) -> dict[str, Vocabulary]:
    fields = gguf.GGUFReader(real_gguf).fields
    names = {name: field.contents() for name, field in fields.items()
             if name.startswith('tokenizer.')}
    return {
        'tables': load_tokenizer(FlashStore.open(real_store)).vocabulary,
        'library': LibraryTokenizer(tokenizer_json(names)),
        'pieces': LibraryTokenizer(tokenizer_json(sentence_piece_fields())),
        'no blank': LibraryTokenizer(tokenizer_json(sentence_piece_fields(
            **{'tokenizer.ggml.add_space_prefix': False}))),
        'line breaks': LibraryTokenizer(tokenizer_json(with_line_breaks(False))),
        'line breaks, blank': LibraryTokenizer(tokenizer_json(with_line_breaks(True)))}


def with_line_breaks(blank: bool) -> dict[str, object]:
    """The shape of Gemma's tokenizer: line breaks are tokens, alone, in rows and with letters."""
    fields = sentence_piece_fields(**{'tokenizer.ggml.add_space_prefix': blank})
    pieces = ['\n', '\n\n', '\n\n\n', '"\n', '\n▁']
    for name, values in (('tokens', pieces), ('token_type', [1] * 5),
                         ('scores', [-40.0, -41.0, -42.0, -43.0, -44.0])):
        fields[f'tokenizer.ggml.{name}'] = [*fields[f'tokenizer.ggml.{name}'], *values]
    return fields


@functools.cache
def bytes_of(vocabulary: Vocabulary) -> tuple[list[bytes], list[int]]:
    return vocabulary.token_bytes()


@pytest.mark.parametrize('name', ['tables', 'library', 'pieces', 'no blank', 'line breaks',
                                  'line breaks, blank'])
@settings(max_examples=60)
@given(text=TEXT)
def test_bytes_of_a_text(vocabularies: dict[str, Vocabulary], name: str, text: str) -> None:
    vocabulary = vocabularies[name]
    texts, special = bytes_of(vocabulary)
    tokens = vocabulary.encode_inside(text)
    assert b''.join(texts[token] for token in tokens).decode() == text
    assert not set(tokens) & set(special)


@settings(max_examples=200)
@given(text=TEXT)
def test_a_text_inside_is_one_that_needs_no_blank(vocabularies: dict[str, Vocabulary], text: str
                                                  ) -> None:
    for name, blankless in (('pieces', 'no blank'), ('line breaks, blank', 'line breaks')):
        assert vocabularies[name].encode_inside(text) == vocabularies[blankless].encode(text)


def test_both_ways_to_read_a_vocabulary(vocabularies: dict[str, Vocabulary]) -> None:
    """The store's tables and tokenizer.json itself."""
    assert vocabularies['tables'].token_bytes()[0] == vocabularies['library'].token_bytes()[0]
    assert (sorted(vocabularies['tables'].token_bytes()[1])
            == sorted(vocabularies['library'].token_bytes()[1]))


@pytest.mark.parametrize('name', ['library', 'pieces', 'no blank'])
def test_forced_text_of_any_vocabulary(vocabularies: dict[str, Vocabulary], name: str) -> None:
    vocabulary = vocabularies[name]
    texts, _ = vocabulary.token_bytes()
    choice = 'hello other  é <|im_end|> {"the": "日 👍"}'
    answer = ConstrainedDecoding(vocabulary, len(texts) + 10, (2,)).start(
        Constraint(ConstraintKind.CHOICES, choices=(choice,)))
    tokens, text = [], ''
    while not answer.complete:
        for token in answer.forced() or [int(answer.allowed().argmax())]:
            tokens.append(token)
            answer.take(token)
            text += answer.step(token)
    assert text == choice == b''.join(texts[token] for token in tokens).decode()
    assert tokens == vocabulary.encode_inside(choice)       # as the model would have read it
