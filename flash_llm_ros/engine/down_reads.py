"""Whether sparse mode reads down columns group by group, or the whole section in a stream."""

from flash_llm_ros.store.device_profile import ReadCosts
from flash_llm_ros.store.geometry import Geometry

DOWN_READS = ('auto', 'stream', 'scattered')
# Without a profile: a scattered request takes as long as reading so many bytes more in a stream.
_REQUEST_BYTES = 16 * 1024


def streams_down(geometry: Geometry, sparsity: float, costs: ReadCosts | None) -> bool:
    """True where reading all groups in a stream is no slower than only those that are needed.

    A group is needed unless all of its columns are left out; columns are left out with the
    probability `sparsity` each, as if independent of each other.
    """
    per_group = geometry.section('down', 0).bundles_per_group
    needed = 1 - sparsity ** per_group
    request = (_REQUEST_BYTES if costs is None
               else costs.request_seconds / max(costs.byte_seconds, 1e-15))
    return needed * (geometry.group_bytes + request) >= geometry.group_bytes
