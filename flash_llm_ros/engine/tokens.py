"""Text to tokens and back, by the tokenizers library."""

from tokenizers import Tokenizer

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError


class TextTokenizer:
    """The store's tokenizer.json."""

    def __init__(self, definition: str, begin_token: int | None) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(definition)
        except Exception as error:      # the library raises bare Exception
            raise FlashLlmError(ErrorCode.STORE_CORRUPT,
                                f'tokenizer.json cannot be used: {error}.') from None
        self._tokenizer.no_truncation()     # what training has left in the file
        self._tokenizer.no_padding()
        self._begin = begin_token

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if self._begin is not None and ids[:1] != [self._begin]:
            ids.insert(0, self._begin)
        return ids

    def text_of(self, token: int | None) -> str:
        """A single token's text, '' for None; chat templates ask for it."""
        return '' if token is None else self._tokenizer.id_to_token(token) or ''

    def stream(self) -> 'TextStream':
        return TextStream(self._tokenizer)


class TextStream:
    """Turns tokens into text piece by piece, whole UTF-8 characters only."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []     # the last piece: how the next one reads depends on it
        self._new: list[int] = []

    def step(self, token: int) -> str:
        """Text that this token completes, '' while a character is incomplete."""
        self._new.append(token)
        before = self._tokenizer.decode(self._shown)
        text = self._tokenizer.decode(self._shown + self._new)
        if len(text) <= len(before) or text.endswith('\ufffd'):
            return ''
        self._shown, self._new = self._new, []
        return text[len(before):]
