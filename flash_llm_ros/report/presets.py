"""Models by name: where their files are, how they are converted, what budget they need.

Each is a file of `presets/`. Its figures are computed for the shape that it has, too, by what
`flash_llm inspect` uses: `python -m bench.memory.presets` prints them.
"""

from dataclasses import dataclass
from importlib.resources import files
import re
from typing import Any

from flash_llm_ros.checked_fields import FieldError, check, check_choice, parsed_yaml, structured
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.engine.config import MODES

_SIZES = ('dram_budget', 'least_budget', 'on_flash', 'read_a_token', 'tokenizer')


@dataclass(frozen=True)
class Preset:
    """FieldError on creation, FlashLlmError for a size without a unit."""

    model: str
    repository: str             # of Hugging Face
    file: str                   # of it, a GGUF; empty: the whole folder
    licence: str
    convert: str                # options of `flash_llm convert`
    mode: str
    context_length: int
    dram_budget: str            # so that half of the weights that a token needs stay in DRAM
    least_budget: str
    on_flash: str               # the weights
    read_a_token: str           # with dram_budget
    tokenizer: str              # what it takes in DRAM
    config: dict[str, Any]      # of config.json, what memory follows from

    def __post_init__(self) -> None:
        check(re.fullmatch(r'[\w.-]+/[\w.-]+', self.repository) is not None, 'repository',
              self.repository, 'OWNER/NAME')
        check(not self.file or self.file.endswith('.gguf'), 'file', self.file,
              'a .gguf file, or empty')
        check_choice(self, 'mode', MODES)
        for name in _SIZES:
            parse_byte_size(name, getattr(self, name))

    def bytes_of(self, name: str) -> int:
        """Of dram_budget and the other sizes."""
        return parse_byte_size(name, getattr(self, name))


def presets() -> dict[str, Preset]:
    """By name, smallest model first. FieldError, FlashLlmError for a file that is wrong."""
    folder = files(__package__) / 'presets'
    found = {path.name.removesuffix('.yaml'): _read(path.name, path.read_text(encoding='utf-8'))
             for path in folder.iterdir()}
    return dict(sorted(found.items(), key=lambda item: item[1].bytes_of('on_flash')))


def _read(name: str, text: str) -> Preset:
    try:
        return structured(Preset, parsed_yaml(text))
    except FieldError as error:
        raise FieldError(f'{name}: {error.field}', error.problem) from None
