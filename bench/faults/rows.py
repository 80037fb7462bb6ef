"""The table's rows, by name."""

from bench.faults import (
    files,
    groups,
    hostile_messages,
    hostile_parts,
    manifests,
    reads,
    writes,
)
from bench.faults.row import Row

_ROOMS = reads, groups, files, manifests, writes, hostile_parts, hostile_messages
ROWS: dict[str, Row] = {row.name: row for room in _ROOMS for row in room.ROWS}
