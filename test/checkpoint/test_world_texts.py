"""500 texts in 20 scripts give the reference's tokens with every pre-tokenizer that is accepted."""

import json
from pathlib import Path

from gguf_checkpoint import gguf_alphabet, write_gguf
import pytest
from test_gguf_tokenizer import sentence_piece_fields
from tiny_checkpoint import write_checkpoint
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from world_texts import world_texts

from bench.quality.tokenizers import Encode, llama_cpp
from flash_llm_ros.checkpoint.gguf_header import read_header
from flash_llm_ros.checkpoint.gguf_pre_tokenizer import NAMES
from flash_llm_ros.checkpoint.gguf_tokenizer import tokenizer_json
from flash_llm_ros.engine.text.tokenizer import LibraryTokenizer, Vocabulary, load_tokenizer
from flash_llm_ros.store.flash_store import FlashStore

TEXTS = world_texts()
# As the tokenizer.json of the models has them, and whether a whole word that is a token is one.
GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+')
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
         r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+')
TEKKEN = (r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+'
          r'|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*'
          r'|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+')
GPT4O = (r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+'
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r'|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*'
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r'|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+')
UNNAMED = [r'[\p{P}\$\+<=>\^~\|]+', GPT2, r'\p{N}+', '[0-9][0-9][0-9]']
OWN = {
    **dict.fromkeys(('gpt-2', 'phi-2', 'olmo', 'mpt', 'exaone4', 'mellum', 'trillion',
                     'granite-docling'), ([GPT2], False)),
    **dict.fromkeys(('smollm', 'starcoder', 'refact', 'command-r', 'codeshell', 'exaone',
                     'minerva-7b'), ([r'\p{N}', GPT2], False)),
    **dict.fromkeys(('llama-bpe', 'llama3', 'llama-v3', 'falcon3', 'pixtral', 'lfm2'),
                    ([LLAMA3], True)),
    **dict.fromkeys(('dbrx', 'smaug-bpe'), ([LLAMA3], False)),
    **dict.fromkeys(('qwen2', 'deepseek-r1-qwen', 'stablelm2', 'megrez'), ([QWEN2], False)),
    'tekken': ([TEKKEN], True), 'gpt-4o': ([GPT4O], False), 'llama4': ([GPT4O], False),
    'default': (UNNAMED, False)}


@pytest.fixture(scope='module')
def trained() -> dict[str, object]:
    """A vocabulary trained across the borders of words: another cut gives other tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # The special tokens are no words of it; llama.cpp takes </s> for one wherever it is.
    pieces = [text[at:at + 12].translate({ord(sign): None for sign in '|/'}) for text in TEXTS
              for at in range(0, len(text), 5)]
    tokenizer.train_from_iterator(pieces, trainers.BpeTrainer(
        vocab_size=6000, initial_alphabet=gguf_alphabet(), show_progress=False))
    vocab = tokenizer.get_vocab()
    merges = json.loads(tokenizer.to_str())['model']['merges']
    return {'tokenizer.ggml.model': 'gpt2',
            'tokenizer.ggml.tokens': [*sorted(vocab, key=vocab.get), '<|im_start|>', '<|im_end|>'],
            'tokenizer.ggml.token_type': [1] * len(vocab) + [3, 3],
            'tokenizer.ggml.merges': [' '.join(merge) for merge in merges],
            'tokenizer.ggml.bos_token_id': len(vocab), 'tokenizer.ggml.eos_token_id':
            len(vocab) + 1}


def differing(vocabulary: Vocabulary, expected: Encode) -> list[str]:
    """The texts whose tokens are others, read with and without special tokens."""
    return [text for text in TEXTS if vocabulary.encode(text) != expected(text, True)
            or vocabulary.encode_inside(text) != expected(text, False)]


@pytest.mark.parametrize('name', NAMES)
def test_as_the_models_own_definition(trained: dict[str, object], name: str) -> None:
    fields = {**trained, 'tokenizer.ggml.pre': name}
    tokens, merges = fields['tokenizer.ggml.tokens'], fields['tokenizer.ggml.merges']
    patterns, whole_words = OWN[name]
    reference = Tokenizer(models.BPE(
        {token: number for number, token in enumerate(tokens)},
        [tuple(merge.split(' ')) for merge in merges], ignore_merges=whole_words))
    reference.pre_tokenizer = pre_tokenizers.Sequence([
        *(pre_tokenizers.Split(Regex(pattern), 'isolated') for pattern in patterns),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    reference.add_special_tokens(tokens[-2:])
    plain = Tokenizer.from_str(reference.to_str())
    plain.encode_special_tokens = True
    assert differing(LibraryTokenizer(tokenizer_json(fields)), lambda text, special: (
        reference if special else plain).encode(text).ids) == []


def test_a_store_reads_them_as_its_checkpoint(real_gguf: Path, real_store: Path) -> None:
    """By its tables."""
    library = LibraryTokenizer(tokenizer_json(read_header(real_gguf).fields))
    assert differing(load_tokenizer(FlashStore.open(real_store)).vocabulary,
                     lambda text, special: (library.encode(text) if special
                                            else library.encode_inside(text))) == []


@pytest.mark.parametrize('name', ['default', 'dbrx', 'gpt-2', 'llama-bpe', 'qwen2', 'smollm'])
def test_as_llama_cpp(tmp_path: Path, trained: dict[str, object], name: str) -> None:
    """One name of each kind but those for which llama.cpp has patterns of its own."""
    fields = {**trained, 'tokenizer.ggml.pre': name}
    count = len(fields['tokenizer.ggml.tokens'])
    write_gguf(write_checkpoint(tmp_path / 'checkpoint', vocab_size=count), tmp_path / 'm.gguf',
               metadata=fields)
    pytest.importorskip('xllamacpp')        # requirements/bench.txt
    with llama_cpp(tmp_path / 'm.gguf') as expected:
        assert differing(LibraryTokenizer(tokenizer_json(fields)), expected) == []


@pytest.mark.parametrize('blank', [True, False])
def test_pieces_as_llama_cpp(tmp_path: Path, blank: bool) -> None:
    fields = sentence_piece_fields(**{'tokenizer.ggml.add_space_prefix': blank})
    count = len(fields['tokenizer.ggml.tokens'])
    write_gguf(write_checkpoint(tmp_path / 'checkpoint', vocab_size=count), tmp_path / 'm.gguf',
               metadata={'tokenizer.ggml.merges': None, **fields})
    found = LibraryTokenizer(tokenizer_json(fields))
    pytest.importorskip('xllamacpp')        # requirements/bench.txt
    with llama_cpp(tmp_path / 'm.gguf') as expected:
        assert [text for text in TEXTS if found.encode(text) != expected(text, True)] == []
