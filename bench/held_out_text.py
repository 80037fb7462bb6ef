"""Text for measuring perplexity: topics of Python's own documentation, in a fixed order.

Calibration never sees it. It changes a little between Python versions, so compare figures of one
run with each other.
"""

from pydoc_data.topics import topics

_STEP = 17


def held_out_text() -> str:
    return '\n\n'.join(topics[name].strip() for name in sorted(topics)[::_STEP])
