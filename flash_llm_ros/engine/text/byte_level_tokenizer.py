"""Byte-level BPE over the store's sorted tables; the library only cuts the text into words."""

from bisect import bisect_left
from heapq import heapify, heappop, heappush
from itertools import groupby

from tokenizers import Tokenizer

from flash_llm_ros.engine.text.inside_tokenizer import inside_tokenizer
from flash_llm_ros.store.tensor_file import TensorFile


class ByteLevelTokenizer:
    """Gives the same tokens and texts as the library does with the whole vocabulary."""

    def __init__(self, tables: TensorFile) -> None:
        """Raises whatever the library raises for a definition that it cannot use."""
        definition = tables.read('definition').tobytes().decode()
        self._words = Tokenizer.from_str(definition)
        self._inside = inside_tokenizer(definition)
        # memoryviews: one entry is a Python integer without NumPy's detour
        self._text, self._ends, self._special, self._pairs, self._ranks, self._results, \
            self._whole = (memoryview(tables.read(name)) for name in (
                'text', 'text_ends', 'special', 'merge_pairs', 'merge_ranks', 'merge_results',
                'whole_words'))

    def encode(self, text: str) -> list[int]:
        return self._encoded(self._words, text)

    def encode_inside(self, text: str) -> list[int]:
        return self._encoded(self._inside, text)

    def _encoded(self, words: Tokenizer, text: str) -> list[int]:
        cut = words.encode(text, add_special_tokens=False)
        tokens: list[int] = []
        for _, word in groupby(zip(cut.word_ids, cut.ids, strict=True), lambda item: item[0]):
            tokens += self._merged([token for _, token in word])
        return tokens

    def decode(self, tokens: list[int]) -> str:
        """Special tokens are left out; bytes that are no UTF-8 become U+FFFD."""
        return b''.join(self._bytes(token) for token in tokens if token < len(self._ends)
                        and not self._special[token]).decode(errors='replace')

    def token_bytes(self) -> tuple[list[bytes], list[int]]:
        count = len(self._ends)
        return [self._bytes(token) for token in range(count)], [
            token for token in range(count) if self._special[token]]

    def _bytes(self, token: int) -> bytes:
        return bytes(self._text[self._ends[token - 1] if token else 0:self._ends[token]])

    def _merged(self, word: list[int]) -> list[int]:
        """Merge the pair of the least rank, the leftmost of several, until there is none."""
        count = len(word)
        if count == 1 or (len(self._whole) and (token := self._whole_word(word)) is not None):
            return word if count == 1 else [token]
        following, previous = list(range(1, count + 1)), list(range(-1, count - 1))
        heap = [entry for i in range(count - 1)
                if (entry := self._candidate(word, i, i + 1)) is not None]
        heapify(heap)
        while heap:
            _, i, left, right, result = heappop(heap)
            j = following[i]
            if word[i] != left or j == count or word[j] != right:
                continue                    # one of the two has been merged since
            word[i], word[j], following[i] = result, -1, following[j]
            if following[i] < count:
                previous[following[i]] = i
            for first, second in ((previous[i], i), (i, following[i])):
                if first >= 0 and second < count \
                        and (entry := self._candidate(word, first, second)) is not None:
                    heappush(heap, entry)
        return [token for token in word if token >= 0]

    def _candidate(self, word: list[int], i: int, j: int) -> tuple[int, int, int, int, int] | None:
        """(rank, place, left, right, result) when the tokens at i and j can be merged."""
        pair = word[i] * len(self._ends) + word[j]
        at = bisect_left(self._pairs, pair)
        if at == len(self._pairs) or self._pairs[at] != pair:
            return None
        return self._ranks[at], i, word[i], word[j], self._results[at]

    def _whole_word(self, word: list[int]) -> int | None:
        text = b''.join(map(self._bytes, word))
        at = bisect_left(self._whole, text, key=self._bytes)
        found = at < len(self._whole) and self._bytes(self._whole[at]) == text
        return self._whole[at] if found else None
