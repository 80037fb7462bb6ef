"""What a part of /diagnostics says: how bad it is, a sentence, and the numbers behind it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum


class Level(IntEnum):
    """The same numbers as the constants of ``diagnostic_msgs/msg/DiagnosticStatus``."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class Health:
    """One line of /diagnostics."""

    level: Level
    text: str
    values: dict[str, object] = field(default_factory=dict)


def worst(
    findings: Iterable[tuple[Level, str]], otherwise: str, values: dict[str, object],
) -> Health:
    """Return the health of the worst finding and the sentences of all of them."""
    findings = sorted(findings, key=lambda finding: -finding[0])
    if not findings:
        return Health(Level.OK, otherwise, values)
    return Health(findings[0][0], ' '.join(text for _, text in findings), values)
