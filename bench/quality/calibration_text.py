"""Text to calibrate with in measurements: topics of Python's documentation that are not held out.

Some topics quote others. What shares a run of eight words with the held-out text is left out.
"""

from pydoc_data.topics import topics

from bench.quality.held_out_text import held_out_text

_RUN = 8


def calibration_text() -> str:
    held_out = word_runs(held_out_text())
    return '\n\n'.join(text for name in sorted(topics)
                       if held_out.isdisjoint(word_runs(text := topics[name].strip())))


def word_runs(text: str) -> set[tuple[str, ...]]:
    """All runs of eight neighbouring words."""
    words = text.split()
    return {tuple(words[start:start + _RUN]) for start in range(len(words) - _RUN + 1)}
