"""Whole sentences out of a text that comes piece by piece, for whoever speaks them."""

import re

MOST_CHARACTERS = 1_000     # of a sentence; none is as long that a person would say
# A dot behind these ends no sentence.
_BEFORE_NAMES = {'mr', 'mrs', 'ms', 'dr', 'prof', 'st', 'gen', 'col', 'capt', 'lt', 'sgt', 'rev',
                 'vs', 'mme', 'mlle', 'sr', 'sra', 'srta'}
_BEFORE_NUMBERS = {'no', 'nr', 'fig', 'p', 'pp', 'ca', 'approx', 'art', 'abs', 'vol', 'ch', 'sec',
                   'núm'}
_CLOSERS = r'"\'”’»)\]」』）】》〉'
_NARROW, _WIDE = '.!?…‽؟۔।॥', '。！？｡'
# What ends a sentence shows with what follows it, so that it does not matter where pieces are cut.
_END = re.compile(
    rf'\n|(?<![{_WIDE}])[{_WIDE}]+[{_CLOSERS}]*(?=[^{_WIDE}{_CLOSERS}])'
    rf'|(?<![{_NARROW}])(?P<marks>[{_NARROW}]+)(?:[{_CLOSERS}]|[ \u00a0\u202f]»)*'
    r'(?=\s+(?P<next>[^\s»]))')     # a French » stands behind a blank
_LAST_WORD = re.compile(r'[^\s(\["“”„‘«]*$')
_TO_LAST_BREAK = re.compile(r'.*[\s,;:،，、；：]', re.DOTALL)


class SentenceSplitter:
    """Sentences end at a line's end and behind . ! ? … and their like in other scripts.

    Dots of numbers, abbreviations and initials end none, nor does any mark before a small letter.
    Where it is in doubt, two sentences stay one, of MOST_CHARACTERS at most: what has no end is cut
    at a blank or a comma.
    """

    def __init__(self) -> None:
        self._text = ''

    def add(self, text: str) -> list[str]:
        """Take the next piece; return the sentences that have ended, in order."""
        found: list[str] = []
        while text:     # never more than a cut would take: pieces do not matter for it either
            room = MOST_CHARACTERS - len(self._text)
            self._text, text = self._text + text[:room], text[room:]
            found += self._ended()
            if len(self._text) == MOST_CHARACTERS:
                cut = _TO_LAST_BREAK.match(self._text)
                end = cut.end() if cut else MOST_CHARACTERS
                found.append(self._text[:end])
                self._text = self._text[end:]
        return _spoken(found)

    def _ended(self) -> list[str]:
        found, begin = [], 0
        for end in _END.finditer(self._text):
            if end['marks'] is None or self._ends(self._text[begin:end.start()], end['marks'],
                                                  end['next']):
                found.append(self._text[begin:end.end()])
                begin = end.end()
        self._text = self._text[begin:]
        return found

    def rest(self) -> list[str]:
        """Return the last sentence where the text ends without a mark; nothing is left then."""
        text, self._text = self._text, ''
        return _spoken([text])

    @staticmethod
    def _ends(before: str, marks: str, following: str) -> bool:
        if following.islower():
            return False
        if marks != '.':
            return True
        word = _LAST_WORD.search(before)[0]
        if word.isdigit():
            return word != before.strip()       # else an item's number
        return not (re.fullmatch(r'[^\W\d]|(?:\w\.)+\w', word) or word.lower() in _BEFORE_NAMES
                    or (word.lower() in _BEFORE_NUMBERS and following.isdigit()))


def _spoken(texts: list[str]) -> list[str]:
    """Without blanks around them, and without those that have nothing to be said."""
    return [text.strip() for text in texts if any(letter.isalnum() for letter in text)]
