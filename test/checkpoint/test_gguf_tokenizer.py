"""Tokenizers made of GGUF metadata against independently built ones."""

from itertools import pairwise
import json
from pathlib import Path

import gguf
from gguf_checkpoint import gguf_alphabet
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from flash_llm_ros.checkpoint.gguf_tokenizer import tokenizer_json

TEXTS = [
    'Hello, world!', ' leading and trailing ', "It's 1234567 and 3.14159, don't you think?",
    'naïve café – “quotes” … Ωμέγα', 'こんにちは世界。漢字も', 'Привет, как дела?', 'مرحبا',
    '👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 👍🏽', 'tabs\tand\r\nlines\n\n\n  indented\n', '', ' ', '\n',
    '   a   b   ',
    'def f(x):\n    return x ** 2  # comment', "I'LL WE'VE he'd", '٣٤٥ ²³ ½', 'a\u0301 e\u0301',
    '<|im_start|>user\nHi<|im_end|>\n', 'x' * 300,
]
KIND = {'normal': 1, 'unknown': 2, 'control': 3, 'user': 4, 'byte': 6}


@pytest.fixture(scope='module')
def smollm_fields(real_gguf: Path) -> dict[str, object]:
    reader = gguf.GGUFReader(real_gguf)
    return {name: field.contents() for name, field in reader.fields.items()
            if name.startswith('tokenizer.')}


@pytest.fixture(scope='module')
def smollm(smollm_fields: dict[str, object]) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json(smollm_fields))


@pytest.fixture(scope='module')
def smollm_reference(smollm_fields: dict[str, object]) -> Tokenizer:
    """As SmolLM2's own tokenizer.json has it: single digits, then byte level with its regex."""
    tokens = smollm_fields['tokenizer.ggml.tokens']
    reference = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)},
                                     [tuple(merge.split(' ')) for merge
                                      in smollm_fields['tokenizer.ggml.merges']]))
    reference.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)])
    reference.decoder = decoders.ByteLevel()
    reference.add_special_tokens(tokens[:17])
    return reference


def test_smollm_agrees_with_its_own_definition(smollm: Tokenizer, smollm_reference: Tokenizer
                                               ) -> None:
    for text in TEXTS:
        assert smollm.encode(text).ids == smollm_reference.encode(text).ids, text


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=('Cs',)), max_size=60))
def test_smollm_on_any_text(smollm: Tokenizer, smollm_reference: Tokenizer, text: str) -> None:
    ids = smollm.encode(text).ids
    assert ids == smollm_reference.encode(text).ids
    # The model has no tokens for some control characters and the rarest lead bytes.
    if all(smollm.token_to_id(gguf_alphabet()[byte]) is not None for byte in text.encode()):
        assert smollm.decode(ids, skip_special_tokens=False) == text


def test_smollm_numbers(smollm: Tokenizer) -> None:
    """Known ids, so that both cannot be wrong together: digits stand alone, specials are one."""
    assert [smollm.id_to_token(i) for i in smollm.encode('in 2024').ids] == [
        'in', 'Ġ', '2', '0', '2', '4']
    assert smollm.encode('<|im_start|>a<|im_end|>').ids == [1, smollm.token_to_id('a'), 2]
    assert smollm.get_vocab_size() == 49152
    assert smollm.decode([1, smollm.token_to_id('a'), 2]) == 'a'


PATTERNS = {
    'gpt-2': r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
    'llama-bpe': (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
                  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
    'qwen2': (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
              r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
}


@pytest.mark.parametrize('pre', sorted(PATTERNS))
def test_byte_level_splits(pre: str) -> None:
    """A vocabulary trained across word borders: a wrong split changes the tokens."""
    reference = Tokenizer(models.BPE(ignore_merges=pre == 'llama-bpe'))
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    reference.pre_tokenizer = alphabet
    reference.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=gguf_alphabet(), show_progress=False))
    vocab = reference.get_vocab()
    merges = [f'{left} {right}' for left, right in
              json.loads(reference.to_str())['model']['merges']]
    found = Tokenizer.from_str(tokenizer_json({
        'tokenizer.ggml.model': 'gpt2', 'tokenizer.ggml.pre': pre,
        'tokenizer.ggml.tokens': sorted(vocab, key=vocab.get),
        'tokenizer.ggml.token_type': [KIND['normal']] * len(vocab),
        'tokenizer.ggml.merges': merges}))
    reference.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERNS[pre]), 'isolated'), alphabet])
    reference.decoder = decoders.ByteLevel()
    for text in TEXTS:
        assert found.encode(text).ids == reference.encode(text).ids, text
        assert found.decode(found.encode(text).ids) == text


@pytest.mark.parametrize(('pre', 'expected'), [('llama-bpe', ['abc']), ('gpt-2', ['ab', 'c'])])
def test_whole_words_of_llama3_need_no_merges(pre: str, expected: list[str]) -> None:
    found = Tokenizer.from_str(tokenizer_json({
        'tokenizer.ggml.model': 'gpt2', 'tokenizer.ggml.pre': pre,
        'tokenizer.ggml.tokens': ['a', 'b', 'c', 'ab', 'abc'],
        'tokenizer.ggml.token_type': [KIND['normal']] * 5, 'tokenizer.ggml.merges': ['a b']}))
    assert found.encode('abc').tokens == expected


def sentence_piece_fields(**changes: object) -> dict[str, object]:
    """The shape of Llama 2's tokenizer: specials, bytes, pieces with scores in their order."""
    pieces = ['▁', 'e', 't', 'a', 'o', 'h', 'l', 'r', '▁t', 'he', '▁a', 'll', '▁the', 'll▁', 'lo',
              'hel', 'hello', '▁hel', '▁hello', '▁hell', 'er', '▁other', 'th', 'other', 'ot', '▁o',
              'the', '▁▁', '▁▁▁▁', 'é', '日', '!']
    tokens = ['<unk>', '<s>', '</s>', *(f'<0x{byte:02X}>' for byte in range(256)), *pieces]
    kinds = [KIND['unknown'], KIND['control'], KIND['control'], *[KIND['byte']] * 256,
             *[KIND['normal']] * len(pieces)]
    # In another order than the pieces', as merging follows the scores alone.
    order = sorted(range(len(pieces)), key=lambda i: (i * 7) % len(pieces))
    scores = [0.0] * 259 + [-float(order.index(i)) for i in range(len(pieces))]
    return {'tokenizer.ggml.model': 'llama', 'tokenizer.ggml.tokens': tokens,
            'tokenizer.ggml.token_type': kinds, 'tokenizer.ggml.scores': scores,
            'tokenizer.ggml.unknown_token_id': 0, **changes}


def sentence_piece_tokens(fields: dict[str, object], text: str) -> list[str]:
    """What SentencePiece does: join the neighbours whose union scores best, the leftmost first."""
    scores = dict(zip(fields['tokenizer.ggml.tokens'], fields['tokenizer.ggml.scores'],
                      strict=True))
    symbols = list('▁' + text.replace(' ', '▁')) if text else []
    while True:
        joined = [(-scores[left + right], at) for at, (left, right)
                  in enumerate(pairwise(symbols))
                  if left + right in scores]
        if not joined:
            break
        at = min(joined)[1]
        symbols[at:at + 2] = [symbols[at] + symbols[at + 1]]
    result = []
    for symbol in symbols:
        result += ([symbol] if symbol in scores
                   else [f'<0x{byte:02X}>' for byte in symbol.encode()])
    return result


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from('  etaohlr!é日xß👍\n'), max_size=24))
def test_sentence_piece(text: str) -> None:
    fields = sentence_piece_fields()
    found = Tokenizer.from_str(tokenizer_json(fields))
    encoded = found.encode(text)
    assert encoded.tokens == sentence_piece_tokens(fields, text)
    assert found.decode(encoded.ids) == text


def test_sentence_piece_without_a_leading_space() -> None:
    found = Tokenizer.from_str(tokenizer_json(sentence_piece_fields(
        **{'tokenizer.ggml.add_space_prefix': False})))
    assert found.encode('hello').tokens == ['hello']
    assert found.decode(found.encode(' hello').ids) == ' hello'


def test_sentence_piece_special_tokens() -> None:
    fields = sentence_piece_fields()
    fields['tokenizer.ggml.tokens'].append('<note>')
    fields['tokenizer.ggml.token_type'].append(KIND['user'])
    fields['tokenizer.ggml.scores'].append(0.0)
    found = Tokenizer.from_str(tokenizer_json(fields))
    assert found.encode('<s>hello</s>').ids == [1, found.token_to_id('▁hello'), 2]
    assert found.encode('<note>').tokens[-1] == '<note>'
    assert found.decode([1, found.token_to_id('▁hello'), 2]) == 'hello'
    assert '<note>' in found.decode([found.token_to_id('<note>')])


@pytest.mark.parametrize(('fields', 'words'), [
    ({'tokenizer.ggml.model': 'rwkv'}, ("'rwkv'", 'gpt2', 'llama')),
    ({}, ('None', 'gpt2')),
    ({'tokenizer.ggml.model': 'gpt2', 'tokenizer.ggml.pre': 'chatglm'}, ("'chatglm'", 'smollm')),
])
def test_unsupported(fields: dict[str, object], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as error:
        tokenizer_json(fields)
    assert all(word in str(error.value) for word in words)
