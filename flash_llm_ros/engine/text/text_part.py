"""The tokenizer and the chat template of a store, as a part of the engine."""

from collections.abc import Callable
import json

from flash_llm_ros.checked_fields import structured
from flash_llm_ros.engine.plan import Part, PlanRow
from flash_llm_ros.engine.text.chat_template import ChatTemplate
from flash_llm_ros.engine.text.tokenizer import load_tokenizer
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.flash_store import (
    CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_TABLES,
    FlashStore,
)

_PER_BYTE = 4       # of a tokenizer.json: what the library's hash maps take at least


class TextPart(Part):
    """`tokenizer` and `template` are there once it is loaded."""

    def __init__(self, store: FlashStore, clock: Callable[[], float]) -> None:
        """`clock`: seconds since 1970, for templates that ask for the date."""
        self._store, self._clock = store, clock

    def estimate(self) -> list[PlanRow]:
        files = self._store.manifest.files
        return [PlanRow('tokenizer', files[TOKENIZER_TABLES]['bytes'] if TOKENIZER_TABLES in files
                        else _PER_BYTE * files[TOKENIZER]['bytes'])]

    def load(self) -> None:
        """Raises FlashLlmError: STORE_CORRUPT, READ_FAILED."""
        self.tokenizer = load_tokenizer(self._store)
        self.template = ChatTemplate(self._store.text(CHAT_TEMPLATE), self._special_tokens(),
                                     self._clock)

    def warm(self) -> None:
        self.tokenizer.encode('warm')

    def _special_tokens(self) -> dict[str, str]:
        if SPECIAL_TOKENS not in self._store.manifest.files:
            return {}
        try:
            return structured(dict[str, str], json.loads(self._store.text(SPECIAL_TOKENS)),
                              SPECIAL_TOKENS)
        except (ValueError, RecursionError) as error:
            raise FlashLlmError(ErrorCode.STORE_CORRUPT, f'{SPECIAL_TOKENS} cannot be used: '
                                f'{error}.') from None
