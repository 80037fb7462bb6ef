"""Text to tokens and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
import json
import re
from typing import Protocol

from tokenizers import Tokenizer

from flash_llm_ros.engine.text.byte_level_tokenizer import ByteLevelTokenizer
from flash_llm_ros.engine.text.inside_tokenizer import inside_tokenizer
from flash_llm_ros.exits import EXITS
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.flash_store import TOKENIZER, TOKENIZER_TABLES, FlashStore
from flash_llm_ros.store.tensor_file import TensorFile
from flash_llm_ros.store.tokenizer_tables import MOST_TOKENS, byte_alphabet

_BYTE_OF = {character: byte for byte, character in enumerate(byte_alphabet())}
_BYTE = re.compile(r'<0x([\dA-F]{2})>')     # a byte of its own in SentencePiece vocabularies


class Vocabulary(Protocol):
    """Tokens of a text and the text of tokens; any thread may ask for either."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, none added."""

    def encode_inside(self, text: str) -> list[int]:
        """The tokens of a text behind another: no blank before it, no special tokens in it."""

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, special ones left out."""

    def token_bytes(self) -> tuple[list[bytes], list[int]]:
        """The bytes of every token inside of a text, and the special tokens."""


class LibraryTokenizer:
    """Any tokenizer.json, by the tokenizers library with the vocabulary in its hash maps."""

    def __init__(self, definition: str) -> None:
        self._tokenizer = Tokenizer.from_str(definition)
        self._tokenizer.no_truncation()     # what training has left in the file
        self._tokenizer.no_padding()

    @cached_property
    def _inside(self) -> Tokenizer:
        """Made for who asks for it: it takes as much memory as the other one."""
        return inside_tokenizer(self._tokenizer.to_str())

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_inside(self, text: str) -> list[int]:
        return self._inside.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens)

    def token_bytes(self) -> tuple[list[bytes], list[int]]:
        count = max(self._tokenizer.get_vocab().values()) + 1
        if count > MOST_TOKENS:
            raise ValueError(f'token {count - 1} is more than a vocabulary may have')
        added = self._tokenizer.get_added_tokens_decoder()
        decoder = json.dumps(json.loads(self._tokenizer.to_str())['decoder'])
        read = _byte_level if '"ByteLevel"' in decoder else _sentence_piece
        texts = [self._tokenizer.id_to_token(token) or '' for token in range(count)]
        return ([text.encode() if token in added else read(text)
                 for token, text in enumerate(texts)],
                [token for token, what in added.items() if what.special])


class GuardedVocabulary:
    """A vocabulary whose failures, panics of the library included, are STORE_CORRUPT."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def encode(self, text: str) -> list[int]:
        with _tokenizer_errors():
            return self._vocabulary.encode(text)

    def encode_inside(self, text: str) -> list[int]:
        with _tokenizer_errors():
            return self._vocabulary.encode_inside(text)

    def decode(self, tokens: list[int]) -> str:
        with _tokenizer_errors():
            return self._vocabulary.decode(tokens)

    def token_bytes(self) -> tuple[list[bytes], list[int]]:
        with _tokenizer_errors():
            return self._vocabulary.token_bytes()


@contextmanager
def _tokenizer_errors() -> Iterator[None]:
    try:
        yield
    except (FlashLlmError, *EXITS):
        raise
    except BaseException as error:      # the library raises bare Exception, and panics
        raise FlashLlmError(ErrorCode.STORE_CORRUPT,
                            f'tokenizer.json cannot be used: {error}.') from None


class TextTokenizer:
    """A tokenizer, and the token that every prompt begins with.

    `source` is the text of a tokenizer.json or the tables that a store has of it.
    """

    def __init__(self, source: str | TensorFile, begin_token: int | None) -> None:
        with _tokenizer_errors():
            self._vocabulary: Vocabulary = GuardedVocabulary(
                LibraryTokenizer(source) if isinstance(source, str) else ByteLevelTokenizer(source))
        self._begin = begin_token

    def encode(self, text: str, begin: bool = True) -> list[int]:
        """The tokens of a text; `begin` is False for one that goes on with others."""
        ids = self._vocabulary.encode(text)
        if begin and self._begin is not None and ids[:1] != [self._begin]:
            ids.insert(0, self._begin)
        return ids

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    def stream(self) -> 'TextStream':
        return TextStream(self._vocabulary)


class TextStream:
    """Turns tokens into text piece by piece, whole UTF-8 characters only."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._shown: list[int] = []     # the last piece: how the next one reads depends on it
        self._new: list[int] = []

    def step(self, token: int) -> str:
        """Text that this token completes, '' while a character is incomplete."""
        self._new.append(token)
        before = self._vocabulary.decode(self._shown)
        text = self._vocabulary.decode(self._shown + self._new)
        if len(text) <= len(before) or text.endswith('\ufffd'):
            return ''
        self._shown, self._new = self._new, []
        return text[len(before):]


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()


def _sentence_piece(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace('▁', ' ').encode()


def load_tokenizer(store: FlashStore) -> TextTokenizer:
    """From the store's tables, or, where it has none, from its tokenizer.json."""
    begin = store.manifest.model.begin_token
    if TOKENIZER_TABLES not in store.manifest.files:
        return TextTokenizer(store.text(TOKENIZER), begin)
    with store.tensors(TOKENIZER_TABLES) as tables:
        return TextTokenizer(tables, begin)
