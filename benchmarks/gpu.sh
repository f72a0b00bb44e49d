#!/usr/bin/env bash
# Everything that needs a GPU, in one command: builds the native libraries, tests the operations with each backend, runs
# compute-sanitizer over every CUDA kernel, and takes all measurements.
#
#     benchmarks/gpu.sh [FOLDER]      # default ./gpu-results; PYTHON=... chooses the interpreter
#
# Needs Python with torch 2.10 or later, triton, numpy, pytest, hypothesis, click, rich, and nvcc. Downloads nothing, and
# the package need not be installed. Goes on after a step that fails and ends with a table; the exit code is 1 if
# any step failed. Without a GPU the steps that need one fail at once and say so. Where machines are lent for minutes,
# MOST_SECONDS=470 gives every step its share and ends in time; unset, nothing is stopped for being slow.
set -uo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "${1:-gpu-results}" || exit 2
out=$(cd "${1:-gpu-results}" && pwd)
python=${PYTHON:-python3}
case $python in /*) ;; */*) python=$PWD/$python ;; esac
cd "$repository"
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1
most_seconds=${MOST_SECONDS:-}
summary=()
failed=0

# step NAME SECONDS COMMAND...: run, output into FOLDER/NAME.log; the seconds are a limit if MOST_SECONDS is set.
step() {
    local name=$1 limit=$2 began=$SECONDS code verdict
    shift 2
    if [ -z "$most_seconds" ]; then
        printf '== %s\n' "$name"
        "$@" >"$out/$name.log" 2>&1 </dev/null
    else
        local left=$((most_seconds - SECONDS))
        if ((left < 5)); then
            summary+=("$name|0|NOT RUN: out of time")
            failed=1
            return
        fi
        ((limit > left)) && limit=$left
        printf '== %s (at most %d s)\n' "$name" "$limit"
        timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1 </dev/null
    fi
    code=$?
    case $code in
        0) verdict=passed ;;
        124 | 137) verdict="FAILED: stopped after $limit s" ;;
        *) verdict="FAILED: exit code $code" ;;
    esac
    ((code == 0)) || { failed=1; tail -n 4 "$out/$name.log" | cut -c1-200 | sed 's/^/   | /'; }
    summary+=("$name|$((SECONDS - began))|$verdict")
}

skip() {
    summary+=("$1|0|skipped: $2")
}

# bench NAME SECONDS OPTIONS...: JSON into FOLDER/NAME.json; table and messages into the log.
bench() {
    local name=$1 limit=$2
    shift 2
    step "$name" "$limit" bash -c '
        "$0" -m distilldepth.cli.main bench --device cuda --json - "${@:2}" >"$1.part"
        code=$?
        if [ -s "$1.part" ]; then
            mv "$1.part" "$1" && "$0" benchmarks/table.py "$1"
        else
            rm -f "$1.part"
        fi
        exit $code' "$python" "$out/$name.json" "$@"
}

step environment 60 "$python" -c '
import platform, shutil, subprocess, sys
import torch
print("python", platform.python_version(), sys.executable)
print("torch", torch.__version__, "CUDA", torch.version.cuda)
for command in (["nvcc", "--version"], ["nvidia-smi"], ["git", "describe", "--always", "--dirty"]):
    found = shutil.which(command[0])
    print("$", *command)
    print(subprocess.run(command, capture_output=True, text=True).stdout if found else "not found")
assert torch.cuda.is_available(), "torch sees no GPU"
print(torch.cuda.get_device_properties(0))'

# For this GPU only, which is faster than for all that are supported.
archs=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())' 2>/dev/null)
[ -n "$archs" ] && export DISTILLDEPTH_CUDA_ARCHS=$archs

# doctor also complains of missing model libraries, which nothing here needs; what counts is that the kernels are there.
step build 150 bash -c '
    "$0" -m distilldepth.cli.main doctor --build
    "$0" -c "
from distilldepth import native
from distilldepth.ops.backend import OPS, available_backends
for op in OPS:
    print(op, {device: available_backends(op, device) for device in (\"cpu\", \"cuda\")})
for kind in native.KINDS:
    assert native.load(kind).loaded, f\"{kind}: {native.load(kind).reason}\"
"' "$python"

tests=(tests/test_hybrid_norm.py tests/test_crop_ssi.py tests/test_channel_kl.py tests/test_backproject.py)
for backend in native triton; do
    step "test-$backend" 75 "$python" -m pytest -q -p no:cacheprovider --device cuda --backend $backend "${tests[@]}"
done
step test-library 60 "$python" -m pytest -q -p no:cacheprovider --device cuda tests/test_ops_library.py

for dtype in float32 bfloat16; do
    bench $dtype-4x560x560 60 --kernel all --contexts all --dtype $dtype --shape 4x560x560
    # The formulations that copy the maps once per context take tens of GB here, and seconds.
    bench $dtype-32x560x560 50 --kernel all --contexts all --dtype $dtype --shape 32x560x560 \
        --backend native,triton,reference,kl-div,meshgrid
done
bench float32-4x560x560-cold 40 --kernel all --contexts all --shape 4x560x560 --backend native,triton --cold
bench scaling 50 --kernel all --scaling

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
for tool in memcheck racecheck; do
    if [ -z "$sanitizer" ]; then
        skip "$tool" "compute-sanitizer is not installed"
    else
        step $tool 60 "$sanitizer" --tool $tool --error-exitcode 9 --launch-timeout 60 "$python" benchmarks/one_pass.py
    fi
done

# Last, because it takes what is left: the baseline that compiles.
bench compile-4x560x560 120 --kernel all --shape 4x560x560 --backend native,reference,compile

printf '\n%-26s %8s  %s\n' step seconds result
for line in "${summary[@]}"; do
    IFS='|' read -r name seconds verdict <<<"$line"
    printf '%-26s %8s  %s\n' "$name" "$seconds" "$verdict"
done | tee "$out/summary.txt"
printf '%d s in all; logs and JSON in %s\n' "$SECONDS" "$out"
exit $failed
