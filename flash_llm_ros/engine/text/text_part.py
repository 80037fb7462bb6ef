"""The tokenizer and the chat template of a store, as a part of the engine."""

from flash_llm_ros.engine.plan import Part, PlanRow
from flash_llm_ros.engine.text.chat_template import ChatTemplate
from flash_llm_ros.engine.text.tokenizer import load_tokenizer
from flash_llm_ros.store.flash_store import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_TABLES, FlashStore

_PER_BYTE = 4       # of a tokenizer.json: what the library's hash maps take at least


class TextPart(Part):
    """`tokenizer` and `template` are there once it is loaded."""

    def __init__(self, store: FlashStore) -> None:
        self._store = store

    def estimate(self) -> list[PlanRow]:
        files = self._store.manifest.files
        return [PlanRow('tokenizer', files[TOKENIZER_TABLES]['bytes'] if TOKENIZER_TABLES in files
                        else _PER_BYTE * files[TOKENIZER]['bytes'])]

    def load(self) -> None:
        """Raises FlashLlmError: STORE_CORRUPT, READ_FAILED."""
        spec = self._store.manifest.model
        self.tokenizer = load_tokenizer(self._store)
        end = spec.end_tokens[0] if spec.end_tokens else None
        self.template = ChatTemplate(self._store.text(CHAT_TEMPLATE),
                                     self.tokenizer.text_of(spec.begin_token),
                                     self.tokenizer.text_of(end))

    def warm(self) -> None:
        self.tokenizer.encode('warm')
