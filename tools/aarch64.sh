#!/usr/bin/env bash
# Builds the wheel for aarch64 with GCC on an x86-64 Debian, and runs tests of the core on it under qemu.
# Needs: apt install g++-aarch64-linux-gnu qemu-user, and Python 3.11, as Debian 12 has. Nothing is installed on this
# machine: Debian's Python for arm64 is unpacked in build/aarch64/.
set -euo pipefail
cd "$(dirname "$0")/.."

WORK=$PWD/build/aarch64
ROOT=$WORK/root
TESTS=(test/native/test_core_checksum.py test/native/test_core_attention.py)
PYTHON=$(command -v python3.11)

if [ ! -x "$ROOT/usr/bin/python3.11" ]; then
    mkdir -p "$WORK"/apt/{lists/partial,archives/partial} "$ROOT"
    : >"$WORK/apt/status"
    apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root
        -o Dir::State::Lists="$WORK/apt/lists" -o Dir::Cache="$WORK/apt" -o Dir::State::status="$WORK/apt/status")
    "${apt[@]}" update
    "${apt[@]}" --yes --no-install-recommends --download-only install libpython3.11-dev python3-minimal libstdc++6
    for package in "$WORK"/apt/archives/*.deb; do dpkg-deb --extract "$package" "$ROOT"; done
    mkdir "$ROOT/proc"      # qemu shows the host's; the tests look here for what ARM's kernels need
    echo 'Features : fp asimd crc32 asimddp' >"$ROOT/proc/cpuinfo"
    "$PYTHON" -m venv "$WORK/tools"
    "$WORK/tools/bin/pip" --quiet install setuptools wheel pybind11
fi

rm -rf "$WORK/source" "$WORK/site"
mkdir -p "$WORK/source" "$WORK/dist"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$WORK/source"
(cd "$WORK/source" && env CC=aarch64-linux-gnu-gcc CXX=aarch64-linux-gnu-g++ \
    LDSHARED='aarch64-linux-gnu-gcc -shared' LDCXXSHARED='aarch64-linux-gnu-g++ -shared' \
    CPATH="$ROOT/usr/include:$ROOT/usr/include/python3.11" _PYTHON_HOST_PLATFORM=linux-aarch64 \
    SETUPTOOLS_EXT_SUFFIX=.cpython-311-aarch64-linux-gnu.so \
    "$WORK/tools/bin/python" setup.py --quiet bdist_wheel --dist-dir "$WORK/dist") >"$WORK/build.log" 2>&1 ||
    { tail -n 40 "$WORK/build.log"; exit 1; }

"$PYTHON" -m pip install --quiet --target "$WORK/site" --only-binary=:all: --implementation cp --python-version 3.11 \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 numpy pyyaml 'pytest<9' pytest-timeout hypothesis
"$PYTHON" -m zipfile -e "$WORK"/dist/*.whl "$WORK/site"
ls "$WORK"/dist/*.whl
mv "$WORK/source/flash_llm_ros" "$WORK/source/not-tested"       # the wheel is tested
cd "$WORK/source"
PYTHONPATH=$WORK/site exec qemu-aarch64 -L "$ROOT" -cpu max "$ROOT/usr/bin/python3.11" -m pytest -q --noconftest \
    -p no:cacheprovider -o timeout=600 "${TESTS[@]}"
