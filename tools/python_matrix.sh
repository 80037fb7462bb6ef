#!/usr/bin/env bash
# Tests of engine, store, converting and commands, without ROS, on every Python that is here: each with the
# oldest libraries that requirements/ allow and that have wheels for it, and with the newest.
# Arguments: versions as 3.10 (looked for on the path and in pyenv), or interpreters. Without any: 3.10 to 3.14.
set -euo pipefail
cd "$(dirname "$0")/.."

TESTS=(
    test/store/test_{block_quantisation,codec,geometry,publication,tensor_file}.py
    test/native/test_core_{arguments,attention,checksum,compute,experts}.py
    test/convert/test_{interrupted,low_rank,relu_predictors}.py
    test/engine/test_{constraint_trial,experts,generation_control,json_schema,mode,session_snapshots}.py
    test/cli/test_{cli,doctor}.py
)
WORK=$PWD/build/python_matrix
UV=$WORK/tools/bin/uv

find_python() {     # where version $1 is, if it is anywhere
    local path
    for path in $(type -ap "python$1") "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/"python$1"; do
        if "$path" -c '' 2>/dev/null; then echo "$path"; return; fi
    done
}

trial() {           # with the libraries of a resolution; prints a line
    local python=$1 tag=$2 resolution=$3 log=$WORK/log/$2.$3
    export VIRTUAL_ENV=$WORK/$tag-$resolution
    if ! {
        "$UV" venv --clear --python "$python" "$VIRTUAL_ENV" &&
        "$UV" pip install --only-binary :all: --resolution "$resolution" --override "$WORK/numpy.txt" \
            -r requirements/runtime.txt -r requirements/convert.txt -r requirements/structured.txt &&
        "$UV" pip install --only-binary :all: 'pytest<9' pytest-timeout hypothesis &&
        "$UV" pip install --no-deps "$WORK"/wheels/*-"$tag"-*.whl &&
        cd "$WORK/tests" && "$VIRTUAL_ENV/bin/python" -m pytest -q -p no:cacheprovider \
            -o timeout=600 "${TESTS[@]}"
    } >"$log" 2>&1; then
        tail -n 40 "$log"
        echo "$("$python" -V), $resolution: FAILED; the whole log: $log"
        return 1
    fi
    echo "$("$python" -V), $("$UV" pip list 2>/dev/null |
        awk '/^(numpy|onnxruntime|tokenizers|llguidance) /{printf "%s %s, ", $1, $2}')$(tail -n 1 "$log")"
}

rm -rf "$WORK/source" "$WORK/tests"
mkdir -p "$WORK/log" "$WORK/source"
[ -x "$UV" ] || { python3 -m venv "$WORK/tools"; "$WORK/tools/bin/pip" --quiet install uv; }
git ls-files -z --cached --others --exclude-standard |
    xargs -0 cp --parents -t "$WORK/source"
cp -r "$WORK/source" "$WORK/tests"
rm -r "$WORK/tests/flash_llm_ros"       # the wheel is tested, not the source beside it

# What only reading GGUF files asks of NumPy is not asked for here, where nothing reads one.
grep '^numpy' requirements/runtime.txt >"$WORK/numpy.txt"

missing=() failed=0
[ $# -gt 0 ] || set -- 3.10 3.11 3.12 3.13 3.14
for name in "$@"; do
    python=$([ -x "$name" ] && echo "$name" || find_python "$name")
    if [ -z "$python" ]; then missing+=("$name"); continue; fi
    tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    rm -f "$WORK"/wheels/*-"$tag"-*
    "$UV" build --wheel --python "$python" --out-dir "$WORK/wheels" "$WORK/source" >"$WORK/log/$tag.build" 2>&1 ||
        { tail -n 40 "$WORK/log/$tag.build"; echo "$("$python" -V): FAILED to build"; failed=1; continue; }
    trials=()
    for resolution in lowest-direct highest; do
        trial "$python" "$tag" "$resolution" & trials+=($!)
    done
    for trial in "${trials[@]}"; do wait "$trial" || failed=1; done
done
[ ${#missing[@]} = 0 ] || echo "NOT TESTED, as they are not here: Python ${missing[*]}"
exit $failed
