"""`~/tokenize` and a constrained answer may read text at the same time, each in its own way."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_checkpoint import byte_tokenizer

from flash_llm_ros.engine.text.tokenizer import LibraryTokenizer, Vocabulary, load_tokenizer
from flash_llm_ros.store.flash_store import TOKENIZER_TABLES, FlashStore

TEXT = 'a<|im_end|>b<|im_start|>' * 3
ROUNDS = 1000
END, START = 257, 256


@pytest.fixture(params=['tables', 'library'])
def vocabulary(request: pytest.FixtureRequest, int8_store: Path) -> Vocabulary:
    if request.param == 'library':
        return LibraryTokenizer(byte_tokenizer().to_str())
    store = FlashStore.open(int8_store)
    assert TOKENIZER_TABLES in store.manifest.files
    return load_tokenizer(store).vocabulary


def test_special_tokens_in_two_threads(vocabulary: Vocabulary) -> None:
    """One reads them as such, the other one as the text that they are."""
    letters = [vocabulary.encode(letter)[0] for letter in TEXT]
    special = [letters[0], END, letters[TEXT.index('b')], START] * 3

    def read(inside: bool) -> set[tuple[int, ...]]:
        encode = vocabulary.encode_inside if inside else vocabulary.encode
        return {tuple(encode(TEXT)) for _ in range(ROUNDS)}

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, [True, False] * 2))
    assert found == [{tuple(letters)}, {tuple(special)}] * 2
