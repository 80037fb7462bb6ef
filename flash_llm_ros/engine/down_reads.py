"""Whether sparse mode reads down columns group by group, or the whole section in a stream."""

from flash_llm_ros.store.device_profile import ReadCosts
from flash_llm_ros.store.geometry import Geometry

DOWN_READS = ('auto', 'stream', 'scattered')
# Without a profile: a scattered request takes as long as reading so many bytes more in a stream.
_REQUEST_BYTES = 16 * 1024


def needed_groups(geometry: Geometry, sparsity: float) -> float:
    """Share of the groups of down columns that a token needs.

    A group is needed unless all of its columns are left out; columns are left out with the
    probability `sparsity` each, as if independent of each other.
    """
    return 1 - sparsity ** geometry.section('down', 0).bundles_per_group


def streams_down(geometry: Geometry, sparsity: float, costs: ReadCosts | None) -> bool:
    """True where reading all groups in a stream is no slower than only those that are needed."""
    request = (_REQUEST_BYTES if costs is None
               else costs.request_seconds / max(costs.byte_seconds, 1e-15))
    return (needed_groups(geometry, sparsity) * (geometry.group_bytes + request)
            >= geometry.group_bytes)
