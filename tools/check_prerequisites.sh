#!/bin/sh
# Says in one sentence what a machine lacks for `make setup`. Argument: the Python to use.
python=$1

lacks() {
    echo "flash_llm_ros cannot be set up: $1" >&2
    exit 1
}

[ -n "$python" ] && [ -x "$(command -v "$python")" ] ||
    lacks "there is no Python ('$python'); on Debian: apt install python3 python3-venv python3-dev"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
    lacks "$("$python" --version) was found, but the versions in requirements/constraints.txt are for Python 3.11; \
say make PYTHON=/path/to/python3.11, or use colcon on apt ROS 2 (doc/building.md)"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    lacks "$python cannot make virtual environments; on Debian: apt install python3-venv"
"$python" -c 'import os.path, sysconfig as s, sys
sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' ||
    lacks "the headers of $python are missing; on Debian: apt install python3-dev"
command -v c++ >/dev/null && command -v cc >/dev/null ||
    lacks 'there is no C and C++ compiler; on Debian: apt install build-essential'
