"""How text is cut into words before pairs are merged, by the names of `tokenizer.ggml.pre`."""

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SIGNS = r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
_LLAMA3 = rf'{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_SIGNS}'
_QWEN2 = _LLAMA3.replace(r'\p{N}{1,3}', r'\p{N}')
_UPPER, _LOWER = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]', r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]'


def _by_case(ending: str, digits: str) -> str:
    """Words end where a capital follows a small letter."""
    before, signs = r'[^\r\n\p{L}\p{N}]?', _SIGNS.replace(r'[\r\n]*', r'[\r\n/]*')
    return (f'{before}{_UPPER}*{_LOWER}+{ending}|{before}{_UPPER}+{_LOWER}*{ending}|{digits}|'
            f'{signs}')


# What llama.cpp does where a file does not say how its model cuts words.
_UNNAMED = (r'[\p{P}\$\+<=>\^~\|]+', _WORDS, r'\p{N}+', '[0-9][0-9][0-9]')


@dataclass(frozen=True)
class PreTokenizer:
    """One way to cut words: patterns, each cutting what those before it have left."""

    patterns: tuple[str, ...]
    whole_words: bool = False       # a word that is a token needs no merges
    begins: bool = False            # a begin token is put in front where the file says nothing

    def steps(self) -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Sequence([
            *(pre_tokenizers.Split(Regex(pattern), 'isolated') for pattern in self.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_KINDS = {
    PreTokenizer((_WORDS,)): (
        'gpt-2', 'phi-2', 'olmo', 'mpt', 'exaone4', 'mellum', 'trillion', 'granite-docling'),
    PreTokenizer((r'\p{N}', _WORDS)): (
        'smollm', 'starcoder', 'refact', 'command-r', 'codeshell', 'exaone', 'minerva-7b'),
    PreTokenizer((_LLAMA3,), whole_words=True, begins=True): (
        'llama-bpe', 'llama3', 'llama-v3', 'falcon3', 'pixtral', 'lfm2'),
    PreTokenizer((_LLAMA3,)): ('dbrx', 'smaug-bpe'),
    PreTokenizer((_QWEN2,)): ('qwen2', 'deepseek-r1-qwen', 'stablelm2', 'megrez'),
    PreTokenizer((_by_case('', r'\p{N}'),), whole_words=True, begins=True): ('tekken',),
    PreTokenizer((_by_case(f'{_SHORT}?', r'\p{N}{1,3}'),)): ('gpt-4o', 'llama4'),
    PreTokenizer(_UNNAMED): ('default',),
}
_PRE_TOKENIZERS = {name: kind for kind, names in _KINDS.items() for name in names}
NAMES = tuple(sorted(_PRE_TOKENIZERS))


def pre_tokenizer(name: object) -> PreTokenizer:
    """Raises ValueError for one that is not known here."""
    if not isinstance(name, str) or name not in _PRE_TOKENIZERS:
        raise ValueError(f'tokenizer.ggml.pre is {name!r}; supported are '
                         f'{", ".join(NAMES)}')
    return _PRE_TOKENIZERS[name]
