"""What an answer has to look like: the side of the request."""

from dataclasses import dataclass
from enum import IntEnum

from flash_llm_ros.engine.text.chat_template import check_text
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

MOST_CHARACTERS = 65_536        # of the text, or of all choices together
MOST_CHOICES = 2_000


class ConstraintKind(IntEnum):
    """The same numbers as the constants of ``flash_llm_msgs/msg/OutputConstraint``.

    An INTERFACE is a JSON_SCHEMA when it comes here: the engine knows no ROS.
    """

    JSON_SCHEMA = 1
    REGEX = 2
    CHOICES = 3
    GRAMMAR = 4


@dataclass(frozen=True)
class Constraint:
    """An answer is always what this says, or ends with an error.

    `text` is a JSON schema, a regular expression that matches the whole answer, or a grammar in
    Lark's notation; `choices` are all answers there may be. Raises
    FlashLlmError(INVALID_CONSTRAINT) for what is empty or too much; the rest shows when it starts.
    """

    kind: ConstraintKind
    text: str = ''
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            ConstraintKind(self.kind)
        except ValueError:
            refuse(f'kind is {self.kind!r}; it must be one of '
                   f'{", ".join(f"{kind.value} ({kind.name})" for kind in ConstraintKind)}')
        if self.kind == ConstraintKind.CHOICES:
            self._check_choices()
        else:
            self._check_text()

    def _check_choices(self) -> None:
        if self.text:
            refuse('text must be empty where the answer is one of choices')
        if not 1 <= len(self.choices) <= MOST_CHOICES:
            refuse(f'choices holds {len(self.choices)} strings; it must hold 1 to {MOST_CHOICES}')
        if not all(self.choices):
            refuse('choices holds an empty string; every choice must hold some text')
        _check_plain('choices', ''.join(self.choices))

    def _check_text(self) -> None:
        if self.choices:
            refuse(f'choices must be empty where kind is {ConstraintKind(self.kind).name}')
        if not self.text.strip():
            refuse(f'text is empty; it must hold a {ConstraintKind(self.kind).name}')
        _check_plain('text', self.text)


def refuse(reason: str) -> None:
    """Raise FlashLlmError(INVALID_CONSTRAINT)."""
    raise FlashLlmError(ErrorCode.INVALID_CONSTRAINT, f'constraint: {reason}.')


def _check_plain(field: str, text: str) -> None:
    if len(text) > MOST_CHARACTERS:
        refuse(f'{field} has {len(text)} characters; it must have at most {MOST_CHARACTERS}')
    try:
        check_text(field, text, MOST_CHARACTERS)
    except FlashLlmError as error:
        refuse(str(error).rstrip('.'))
