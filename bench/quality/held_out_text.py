"""Text for measuring perplexity that calibration never sees.

`held_out_text` are topics of Python's own documentation, in a fixed order. It changes a little
between Python versions, so compare figures of one run with each other. `other_text` is of another
kind, the package's own prose, questions and code: no setting was chosen on it.
"""

from pydoc_data.topics import topics

from flash_llm_ros.convert.calibration_text import default_text

_STEP = 17


def held_out_text() -> str:
    return '\n\n'.join(topics[name].strip() for name in sorted(topics)[::_STEP])


def other_text() -> str:
    return default_text()


TEXTS = {'held-out': held_out_text, 'other': other_text}
