"""The byte-level tokenizer over tables against the library with the whole vocabulary."""

import json
from pathlib import Path
from pydoc_data.topics import topics
import shutil

import gguf
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
from test_gguf_tokenizer import sentence_piece_fields
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from flash_llm_ros.checkpoint.gguf_tokenizer import tokenizer_json
from flash_llm_ros.engine.text.byte_level_tokenizer import ByteLevelTokenizer
from flash_llm_ros.engine.text.tokenizer import LibraryTokenizer, load_tokenizer
from flash_llm_ros.store.flash_store import TOKENIZER_TABLES, FlashStore
from flash_llm_ros.store.manifest import Manifest
from flash_llm_ros.store.tensor_file import TensorFile, TensorFileWriter
from flash_llm_ros.store.tokenizer_tables import byte_alphabet, tokenizer_tables

PIECES = ('a', 'the', ' the', 'Hello', ' <|im_start|>', '<|end|>', '<|im', 'plain one', '\n\n',
          '  ', '\t', '12345', "'s", '::', 'é', '日本', '🙂', 'e\u0301', 'ſ', '\x00', 'ÿ', '\u2028')


def trained(ignore_merges: bool = False, size: int = 900) -> str:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [text for name, text in sorted(topics.items()) if name < 'd'],
        trainers.BpeTrainer(vocab_size=size, show_progress=False, special_tokens=['<|end|>'],
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_special_tokens([AddedToken('<|im_start|>', normalized=False)])
    tokenizer.add_tokens([AddedToken('plain one', lstrip=True), AddedToken('日本')])
    return tokenizer.to_str()


def several_ways() -> str:
    """Merges whose result meets a pair of lower rank, and a token that two pairs make."""
    alphabet = byte_alphabet()
    merges = [('ab', 'c'), ('c', 'c'), ('b', 'c'), ('a', 'bc'), ('a', 'b'), ('abc', 'abc'),
              ('cc', 'a')]
    tokens = dict.fromkeys([*alphabet, *(left + right for left, right in merges)])
    vocab = {token: 2 * i for i, token in enumerate(tokens)}        # gaps between the numbers
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str()


def from_tables(definition: str, folder: Path) -> ByteLevelTokenizer:
    tables = tokenizer_tables(definition)
    writer = TensorFileWriter(folder / 'tables', {name: (table.dtype, table.shape)
                                                  for name, table in tables.items()})
    for name, table in tables.items():
        writer.write(name, table)
    writer.close()
    with TensorFile(folder / 'tables') as file:
        return ByteLevelTokenizer(file)


@pytest.mark.parametrize('definition', [trained(), trained(ignore_merges=True), several_ways()],
                         ids=['trained', 'whole words', 'several ways'])
def test_same_as_the_library(definition: str, tmp_path: Path) -> None:
    ours, library = from_tables(definition, tmp_path), LibraryTokenizer(definition)
    count = 2 * Tokenizer.from_str(definition).get_vocab_size()

    @settings(max_examples=400, deadline=None)
    @given(text=st.lists(st.sampled_from(PIECES)).map(''.join)
           | st.text(st.characters(exclude_categories=('Cs',))) | st.text('abc'))
    def same_tokens(text: str) -> None:
        assert ours.encode(text) == library.encode(text)

    @settings(max_examples=400, deadline=None)
    @given(tokens=st.lists(st.integers(0, count), max_size=8))
    def same_text(tokens: list[int]) -> None:
        assert ours.decode(tokens) == library.decode(tokens)

    same_tokens()
    same_text()
    text = '\n'.join(topics[name] for name in sorted(topics)[-40:])
    assert ours.encode(text) == library.encode(text)


def test_special_tokens(tmp_path: Path) -> None:
    ours = from_tables(trained(), tmp_path)
    start, end = ours.encode('<|im_start|><|end|>')
    texts, special = ours.token_bytes()
    assert (texts[start], texts[end]) == (b'<|im_start|>', b'<|end|>')
    assert {start, end} <= set(special)
    assert ours.decode([start, *ours.encode('x'), end]) == 'x'


@pytest.mark.timeout(60)
def test_a_long_word_takes_no_quadratic_time(tmp_path: Path) -> None:
    definition = trained()
    text = 'ab' * 30_000
    assert from_tables(definition, tmp_path).encode(text) == LibraryTokenizer(definition).encode(
        text)


def test_a_real_vocabulary(real_gguf: Path, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(real_gguf)
    fields = {name: field.contents() for name, field in reader.fields.items()
              if name.startswith('tokenizer.')}
    definition = tokenizer_json(fields)
    ours, library = from_tables(definition, tmp_path), LibraryTokenizer(definition)
    text = ''.join(topics[name] for name in sorted(topics)[::9])
    tokens = ours.encode(text)
    assert tokens == library.encode(text) and len(tokens) > 5000
    assert ours.decode(tokens) == library.decode(tokens) == text


@pytest.mark.parametrize('change', [
    {'byte_fallback': True}, {'unk_token': 'a'}, {'dropout': 0.1}, {'type': 'WordLevel'},
    {'end_of_word_suffix': '</w>'}])
def test_others_are_left_to_the_library(change: dict[str, object]) -> None:
    definition = json.loads(trained(size=300))
    definition['model'] |= change
    assert tokenizer_tables(json.dumps(definition)) is None


def test_what_is_no_byte_level_tokenizer_has_no_tables() -> None:
    assert tokenizer_tables(tokenizer_json(sentence_piece_fields())) is None
    for broken in ('', '{}', '{"model": []}', '{"model": {"type": "BPE"}}'):
        assert tokenizer_tables(broken) is None


def test_stores_with_and_without_tables(int8_store: Path, tmp_path: Path) -> None:
    with_tables = FlashStore.open(int8_store)
    assert TOKENIZER_TABLES in with_tables.manifest.files
    copy = shutil.copytree(int8_store, tmp_path / 'old')
    (copy / TOKENIZER_TABLES).unlink()
    manifest = Manifest.load(copy / 'manifest.yaml')
    del manifest.files[TOKENIZER_TABLES]
    manifest.save(copy / 'manifest.yaml')
    text = 'As made before tables: <|im_start|> é'
    new, old = load_tokenizer(with_tables), load_tokenizer(FlashStore.open(copy))
    assert new.encode(text) == old.encode(text)
