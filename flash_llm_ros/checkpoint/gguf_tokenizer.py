"""Builds a tokenizer.json out of GGUF metadata with the `tokenizers` library."""

from collections import Counter
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from flash_llm_ros.checkpoint.gguf_pre_tokenizer import pre_tokenizer
from flash_llm_ros.checkpoint.special_tokens import NO_TOKEN, TEMPLATE_NAMES
from flash_llm_ros.exits import EXITS

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4     # gguf.TokenType
_UNNAMED = 'default'                # the pre-tokenizer of a file that names none


def control_tokens(fields: dict[str, Any]) -> dict[str, int]:
    """The numbers of all control tokens by their texts."""
    kinds = fields['tokenizer.ggml.token_type']
    return {token: number for number, (token, kind)
            in enumerate(zip(fields['tokenizer.ggml.tokens'], kinds, strict=True))
            if kind == _CONTROL}


def token_number(fields: dict[str, Any], name: str) -> int | None:
    """Of the token that ends, begins, ...; None where the file names none."""
    number = fields.get(f'tokenizer.ggml.{name}_token_id')
    return None if number is None or number in NO_TOKEN else int(number)


def special_tokens(fields: dict[str, Any]) -> dict[str, str]:
    """The tokens that a chat template may name, by the names that it has for them."""
    tokens = fields['tokenizer.ggml.tokens']
    ids = {name: token_number(fields, key) for name, key in
           zip(TEMPLATE_NAMES, ('bos', 'eos', 'unknown', 'padding'), strict=True)}
    return {name: tokens[number] for name, number in ids.items() if number is not None}


def begins_by_default(fields: dict[str, Any]) -> bool:
    """Whether a begin token is put in front where the file does not say it; as llama.cpp does."""
    if fields.get('tokenizer.ggml.model') == 'llama':
        return True
    return pre_tokenizer(fields.get('tokenizer.ggml.pre', _UNNAMED)).begins


def doubt(fields: dict[str, Any]) -> str | None:
    """What is to be said of a file that does not tell how its model cuts words."""
    name = fields.get('tokenizer.ggml.pre', 'missing')
    if fields.get('tokenizer.ggml.model') != 'gpt2' or name not in (_UNNAMED, 'missing'):
        return None
    return (f'tokenizer.ggml.pre is {name}: how its model cuts words is not known, and answers may '
            'be worse; a newer GGUF of the model says it')


def tokenizer_json(fields: dict[str, Any]) -> str:
    """Raises ValueError for a tokenizer model or pre-tokenizer that is not supported."""
    kind, tokens = fields.get('tokenizer.ggml.model'), fields.get('tokenizer.ggml.tokens', ())
    if len(set(tokens)) < len(tokens):
        token, _ = Counter(tokens).most_common(1)[0]
        raise ValueError(f'tokenizer.ggml.tokens has {token!r} twice; each must be another one')
    if kind == 'gpt2':
        tokenizer = _byte_level(fields)
    elif kind == 'llama':
        tokenizer = _sentence_piece(fields)
    else:
        raise ValueError(f'tokenizer.ggml.model is {kind!r}; supported are gpt2 and llama')
    special, plain = [], []
    for token, token_type in zip(fields['tokenizer.ggml.tokens'],
                                 fields['tokenizer.ggml.token_type'], strict=True):
        if token_type in (_UNKNOWN, _CONTROL):
            special.append(AddedToken(token, special=True, normalized=False))
        elif token_type == _USER_DEFINED:
            plain.append(AddedToken(token, special=False, normalized=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)
    return tokenizer.to_str()


def _byte_level(fields: dict[str, Any]) -> Tokenizer:
    words = pre_tokenizer(fields.get('tokenizer.ggml.pre', _UNNAMED))
    vocab = {token: i for i, token in enumerate(fields['tokenizer.ggml.tokens'])}
    merges = [tuple(merge.split(' ', 1)) for merge in fields['tokenizer.ggml.merges']]
    tokenizer = _bpe(vocab, merges, ignore_merges=words.whole_words)
    tokenizer.pre_tokenizer = words.steps()
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
    for token, score, kind in zip(tokens, scores, fields['tokenizer.ggml.token_type'], strict=True):
        if kind in (_UNKNOWN, _CONTROL):    # no text makes one
            continue
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
