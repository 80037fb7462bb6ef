"""Builds a tokenizer.json out of GGUF metadata with the `tokenizers` library."""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from flash_llm_ros.exits import EXITS

_CONTROL, _USER_DEFINED = 3, 4      # gguf.TokenType

# How the text is cut before merging, by the name that `tokenizer.ggml.pre` gives it.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
           r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+')
_QWEN2 = _LLAMA3.replace(r'\p{N}{1,3}', r'\p{N}')
_SPLITS = {'default': _GPT2, 'gpt-2': _GPT2, 'smollm': _GPT2, 'llama-bpe': _LLAMA3,
           'llama3': _LLAMA3, 'qwen2': _QWEN2}
_SINGLE_DIGITS = ('smollm',)
LLAMA3_SPLITS = ('llama-bpe', 'llama3')     # a whole word that is a token needs no merges


def tokenizer_json(fields: dict[str, Any]) -> str:
    """Raises ValueError for a tokenizer model or pre-tokenizer that is not supported."""
    kind = fields.get('tokenizer.ggml.model')
    if kind == 'gpt2':
        tokenizer = _byte_level(fields)
    elif kind == 'llama':
        tokenizer = _sentence_piece(fields)
    else:
        raise ValueError(f'tokenizer.ggml.model is {kind!r}; supported are gpt2 and llama')
    special, plain = [], []
    for token, token_type in zip(fields['tokenizer.ggml.tokens'],
                                 fields['tokenizer.ggml.token_type'], strict=True):
        if token_type == _CONTROL:
            special.append(AddedToken(token, special=True, normalized=False))
        elif token_type == _USER_DEFINED:
            plain.append(AddedToken(token, special=False, normalized=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)
    return tokenizer.to_str()


def _byte_level(fields: dict[str, Any]) -> Tokenizer:
    name = fields.get('tokenizer.ggml.pre', 'default')
    if name not in _SPLITS:
        raise ValueError(f'tokenizer.ggml.pre is {name!r}; supported are '
                         f'{", ".join(sorted(_SPLITS))}')
    vocab = {token: i for i, token in enumerate(fields['tokenizer.ggml.tokens'])}
    merges = [tuple(merge.split(' ', 1)) for merge in fields['tokenizer.ggml.merges']]
    tokenizer = _bpe(vocab, merges, ignore_merges=name in LLAMA3_SPLITS)
    steps = [pre_tokenizers.Split(Regex(_SPLITS[name]), 'isolated'),
             pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if name in _SINGLE_DIGITS:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _bpe(vocab: dict[str, int], merges: list[tuple[str, ...]], **options: Any) -> Tokenizer:
    try:
        return Tokenizer(models.BPE(vocab, merges, **options))
    except EXITS:
        raise
    except BaseException as error:      # the library raises bare Exception, and panics
        raise ValueError(f'the tokens and merges make no tokenizer: {error}') from None


def _sentence_piece(fields: dict[str, Any]) -> Tokenizer:
    """A SentencePiece BPE: merges follow from the pieces' scores, unknown bytes fall back."""
    tokens, scores = fields['tokenizer.ggml.tokens'], fields['tokenizer.ggml.scores']
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                merges.append((-score, vocab[left], vocab[right], left, right))
    merges.sort()
    unknown = tokens[fields.get('tokenizer.ggml.unknown_token_id', 0)]
    tokenizer = _bpe(vocab, [merge[3:] for merge in merges], unk_token=unknown, fuse_unk=True,
                     byte_fallback=True)
    steps = [normalizers.Replace(' ', '▁')]
    strip = []
    if fields.get('tokenizer.ggml.add_space_prefix', True):
        steps.insert(0, normalizers.Prepend('▁'))
        strip = [decoders.Strip(' ', 1, 0)]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(),
                                           decoders.Fuse(), *strip])
    return tokenizer
