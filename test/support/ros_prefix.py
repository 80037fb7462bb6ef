"""Where the tests find installed ROS packages."""

import os
from pathlib import Path
import sys


def share_directory(package: str) -> Path:
    """Return a package's share folder, in a sourced ROS or, without one, beside this Python."""
    prefixes = os.environ.get('AMENT_PREFIX_PATH', sys.prefix).split(os.pathsep)
    found = [path for prefix in prefixes if (path := Path(prefix, 'share', package)).is_dir()]
    assert found, f'{package} is not installed in {prefixes}'
    return found[0]
