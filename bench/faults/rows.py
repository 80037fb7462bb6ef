"""The table's rows, by name."""

from bench.faults import files, groups, reads
from bench.faults.row import Row

ROWS: dict[str, Row] = {row.name: row for row in (*reads.ROWS, *groups.ROWS, *files.ROWS)}
