"""Has DDS give back the memory of large messages, unless the robot has profiles of its own."""

import os
from pathlib import Path

PROFILE = Path(__file__).with_name('fastdds.xml')
_FILE, _USED = 'FASTRTPS_DEFAULT_PROFILES_FILE', 'RMW_FASTRTPS_USE_QOS_FROM_XML'
_IN_FOLDER = 'DEFAULT_FASTRTPS_PROFILES.xml'    # which Fast DDS looks for by itself


def use_dds_profile() -> None:
    """Set what Fast DDS reads when the first node of the process is made; others pass it over."""
    if not (_FILE in os.environ or _USED in os.environ or Path(_IN_FOLDER).exists()):
        os.environ[_FILE], os.environ[_USED] = str(PROFILE), '1'
