"""Text to tokens and back."""

from typing import Protocol

from tokenizers import Tokenizer

from flash_llm_ros.engine.byte_level_tokenizer import ByteLevelTokenizer
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError, ReadFailedError
from flash_llm_ros.store.flash_store import TOKENIZER, TOKENIZER_TABLES, FlashStore
from flash_llm_ros.store.tensor_file import TensorFile


class Vocabulary(Protocol):
    """Tokens of a text and the text of tokens."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, none added."""

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, special ones left out."""

    def text_of(self, token: int) -> str:
        """A special token's own text."""


class LibraryTokenizer:
    """Any tokenizer.json, by the tokenizers library with the vocabulary in its hash maps."""

    def __init__(self, definition: str) -> None:
        self._tokenizer = Tokenizer.from_str(definition)
        self._tokenizer.no_truncation()     # what training has left in the file
        self._tokenizer.no_padding()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens)

    def text_of(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or ''


class TextTokenizer:
    """A tokenizer, and the token that every prompt begins with.

    `source` is the text of a tokenizer.json or the tables that a store has of it.
    """

    def __init__(self, source: str | TensorFile, begin_token: int | None) -> None:
        try:
            self._vocabulary: Vocabulary = (LibraryTokenizer(source) if isinstance(source, str)
                                            else ByteLevelTokenizer(source))
        except ReadFailedError:
            raise
        except Exception as error:      # the library raises bare Exception
            raise FlashLlmError(ErrorCode.STORE_CORRUPT,
                                f'tokenizer.json cannot be used: {error}.') from None
        self._begin = begin_token

    def encode(self, text: str, begin: bool = True) -> list[int]:
        """The tokens of a text; `begin` is False for one that goes on with others."""
        ids = self._vocabulary.encode(text)
        if begin and self._begin is not None and ids[:1] != [self._begin]:
            ids.insert(0, self._begin)
        return ids

    def text_of(self, token: int | None) -> str:
        """A special token's text, '' for None; chat templates ask for it."""
        return '' if token is None else self._vocabulary.text_of(token)

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


def load_tokenizer(store: FlashStore) -> TextTokenizer:
    """From the store's tables, or, where it has none, from its tokenizer.json."""
    begin = store.manifest.model.begin_token
    if TOKENIZER_TABLES not in store.manifest.files:
        return TextTokenizer(store.text(TOKENIZER), begin)
    with TensorFile(store.path / TOKENIZER_TABLES) as tables:
        return TextTokenizer(tables, begin)
