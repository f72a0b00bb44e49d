#!/usr/bin/env bash
# Everything that needs a GPU, in one command, from a clone: builds the native libraries, tests the operations with each
# backend, runs compute-sanitizer over every CUDA kernel, and takes all measurements.
#
#     benchmarks/gpu.sh [--device cpu] [--steps NAME,NAME...] [FOLDER]        # default ./gpu-results
#
# First it looks for all that it needs and names all that is missing at once (exit code 2): Python packages, a GPU,
# nvcc, a C++ compiler. Nothing of the project has to be installed, nothing is downloaded. Then it goes on after a step
# that fails; the exit code is 1 if any did not pass.
#
# FOLDER gets a log per step, JSON per measurement, the tables made from them, and summary.txt, a line per step as soon
# as it is over. The JSON is written row by row.
#
# --device cpu    every step with the CPU in the place of the GPU: tiny maps, a selection of tests, Triton in its
#                 interpreter, and the calls that the sanitizers watch without them. It shows that this file works.
# --steps         only these steps; patterns such as 'test-*' will do. Folders may be used again, summaries append.
# MOST_SECONDS    where a machine is lent for minutes, 570 of 10 minutes: every step gets its limit below, and what
#                 earlier steps left over. A step that no longer fits is skipped, later and shorter ones still run.
#                 Unset, nothing is stopped for being slow.
# PYTHON          the interpreter, default python3.
set -uo pipefail

# Seconds that each step may take at most, in the order in which they run: with the look around 570 in all. Triton's
# tests compile 250 kernels of a third of a second, in four processes the slowest of which has 150. A measurement that
# is cut off has its rows.
steps=(build:110 test-native:45 test-triton:85 test-library:45 memcheck:40 racecheck:40 float32-few:30 bfloat16-few:30
    float32-many:25 bfloat16-many:25 cold:20 scaling:20 compile:30 tables:10)

usage() {
    printf 'gpu.sh: %s\nusage: benchmarks/gpu.sh [--device cuda|cpu] [--steps NAME,NAME...] [FOLDER]\nsteps:' "$1" >&2
    printf ' %s' "${steps[@]%:*}" >&2
    printf '\n' >&2
    exit 2
}

device=cuda patterns=('*') folder=
while (($#)); do
    case $1 in
        --device) device=${2-} && shift 2 || usage "--device needs a value" ;;
        --steps) IFS=, read -ra patterns <<<"${2-}" && shift 2 || usage "--steps needs a value" ;;
        -*) usage "unknown option $1" ;;
        *)
            [ -z "$folder" ] || usage "one folder, got $folder and $1"
            folder=$1
            shift
            ;;
    esac
done
[[ $device == cuda || $device == cpu ]] || usage "--device must be cuda or cpu, got $device"
most_seconds=${MOST_SECONDS:-}
[[ $most_seconds =~ ^[0-9]*$ ]] || usage "MOST_SECONDS must be a whole number, got $most_seconds"

selected() {
    local pattern
    for pattern in "${patterns[@]}"; do
        # shellcheck disable=SC2053  # it is a pattern
        [[ $1 == $pattern ]] && return 0
    done
    return 1
}

limit_of() {
    local entry
    for entry in "${steps[@]}"; do
        [[ ${entry%:*} == "$1" ]] && printf '%s' "${entry#*:}"
    done
}

reserved=0 # seconds that the steps to come may take
for entry in "${steps[@]}"; do
    selected "${entry%:*}" && reserved=$((reserved + ${entry#*:}))
done
((reserved)) || usage "no step is called ${patterns[*]}"

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "${folder:=gpu-results}" || exit 2
out=$(cd "$folder" && pwd)
python=${PYTHON:-python3}
case $python in /*) ;; */*) python=$PWD/$python ;; esac
command -v "$python" >/dev/null || { printf 'gpu.sh: no Python: %s; set PYTHON\n' "$python" >&2; exit 2; }

# The package as it would be installed, whose parts lie in folders of their own. Of links, because pip may have no
# network and setuptools may be missing. Steps run inside it, so that Python takes this one before all others.
package=$(mktemp -d) || exit 2
trap 'rm -rf "$package"' EXIT
mkdir "$package/distilldepth"
ln -s "$repository"/distilldepth/* "$package/distilldepth/"
ln -s "$repository/cli" "$repository/csrc" "$package/distilldepth/"
cd "$package" || exit 2
export PYTHONPATH=$package${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

"$python" - "$device" "$repository" >"$out/environment.log" 2>&1 <<'PYTHON'
import importlib
import platform
import shutil
import subprocess
import sys

device, repository = sys.argv[1:]
missing, torch = [], None
if sys.version_info < (3, 10):
    missing.append(f"Python 3.10 or later, this is {platform.python_version()}")
packages = {
    "torch": "torch", "triton": "triton", "numpy": "numpy", "PIL": "pillow", "click": "click", "rich": "rich",
    "pytest": "pytest", "hypothesis": "hypothesis",
}
for module, package in packages.items():
    try:
        found = importlib.import_module(module)
    except Exception as error:
        missing.append(f"Python package {package} ({type(error).__name__}: {error})")
    else:
        torch = found if module == "torch" else torch
        print(package, getattr(found, "__version__", ""))
print("python", platform.python_version(), sys.executable)
if torch is not None:
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
        missing.append(f"torch 2.10 or later, this is {torch.__version__}")
    if device == "cuda" and not torch.cuda.is_available():
        missing.append(f"a GPU that torch sees; torch {torch.__version__} is built for CUDA {torch.version.cuda}")
    elif device == "cuda":
        print(torch.cuda.get_device_properties(0))
from distilldepth import native

for kind in dict.fromkeys(("cpu", device)):
    try:
        why = native.obstacle(kind)
    except Exception as error:
        why = str(error)
    if why is not None and (torch is not None or "torch" not in why):
        missing.append(f"a compiler of the {kind} library: {why}")
commands = [["git", "-C", repository, "describe", "--always", "--dirty"], ["c++", "--version"]]
if device == "cuda":
    commands += [[native.find_nvcc() or "nvcc", "--version"], ["nvidia-smi"]]
for command in commands:
    print("$", *command)
    there = shutil.which(command[0])
    print(subprocess.run(command, capture_output=True, text=True).stdout if there else "not found")
if missing:
    print("missing:")
    print("\n".join(f"  - {what}" for what in missing))
sys.exit(2 if missing else 0)
PYTHON
code=$?
if ((code == 2)); then
    printf 'gpu.sh: nothing was run. ' >&2
    sed -n '/^missing:/,$p' "$out/environment.log" >&2
    exit 2
elif ((code)); then
    cat "$out/environment.log" >&2
    exit 2
fi

failed=0
{
    printf '# %s %s, %s, steps %s, %s\n' "$(date -u +%FT%TZ)" "$device" "$(uname -n)" "${patterns[*]}" \
        "${most_seconds:+at most $most_seconds s}"
    printf '%-16s %8s  %s\n' step seconds result
} >>"$out/summary.txt"

note() { # NAME SECONDS RESULT
    printf '%-16s %8s  %s\n' "$1" "$2" "$3" | tee -a "$out/summary.txt"
}

skip() { # NAME REASON
    selected "$1" || return 0
    reserved=$((reserved - $(limit_of "$1")))
    note "$1" 0 "skipped: $2"
}

# step NAME COMMAND...: run if it is selected and fits, output into FOLDER/NAME.log.
step() {
    local name=$1 own allowed= began=$SECONDS code verdict json=$out/$1.json
    shift
    selected "$name" || return 0
    own=$(limit_of "$name")
    reserved=$((reserved - own))
    local limited=()
    if [ -n "$most_seconds" ]; then
        local left=$((most_seconds - SECONDS))
        if ((left < own)); then
            note "$name" 0 "NOT RUN: it may take $own s, and $left s are left"
            failed=1
            return 0
        fi
        allowed=$((left - reserved > own ? left - reserved : own))
        limited=(timeout --kill-after=5 "$allowed")
    fi
    "${limited[@]}" "$@" >"$out/$name.log" 2>&1 </dev/null
    code=$?
    case $code in
        0) verdict=passed ;;
        124 | 137) verdict="FAILED: stopped after ${allowed:-$((SECONDS - began))} s" ;;
        *) verdict="FAILED: exit code $code" ;;
    esac
    if [ -e "$json" ]; then
        verdict+=", $(grep -c '"median_ms"' "$json") rows"
    fi
    note "$name" $((SECONDS - began)) "$verdict"
    ((code == 0)) || { failed=1; tail -n 4 "$out/$name.log" | cut -c1-200 | sed 's/^/   | /'; }
}

# bench NAME OPTIONS...: JSON into FOLDER/NAME.json; table and messages into the log.
bench() {
    local name=$1
    shift
    selected "$name" && rm -f "$out/$name.json"
    step "$name" "$python" -m distilldepth.cli.main bench --device $device --json "$out/$name.json" "$@"
}

pytest=("$python" -m pytest -q -p no:cacheprovider -c "$repository/pyproject.toml" --rootdir "$repository")
tests=(hybrid_norm crop_ssi channel_kl backproject)
tests=("${tests[@]/#/$repository/tests/test_}")
tests=("${tests[@]/%/.py}")
# NAME:EXPRESSION... -- COMMAND...: the tests of several files at once, because most of the time of Triton's goes into
# compiling, on one core each.
in_parallel=(bash -c '
    log=$1 folder=$2 jobs=()
    shift 2
    while [ "$1" != -- ]; do
        jobs+=("$1")
        shift
    done
    shift
    for number in "${!jobs[@]}"; do
        "$@" -k "${jobs[number]#*:}" "$folder/test_${jobs[number]%%:*}.py" >"$log-$number.log" 2>&1 &
        started+=($!)
    done
    for number in "${!jobs[@]}"; do
        wait "${started[number]}" || code=1
        printf "\n== %s\n" "${jobs[number]}"
        cat "$log-$number.log"
    done
    exit ${code:-0}' in_parallel "$out/test-triton" "$repository/tests")
one_pass=("$python" "$repository/benchmarks/one_pass.py" --device $device)

if [ $device = cuda ]; then
    # For this GPU only, which is faster than for all that are supported.
    DISTILLDEPTH_CUDA_ARCHS=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
    export DISTILLDEPTH_CUDA_ARCHS
fi
step build "$python" -c '
import sys
import distilldepth
import distilldepth.cli
from distilldepth import native
from distilldepth.ops.backend import OPS, available_backends

for module in (distilldepth, distilldepth.cli):
    print(module.__file__)
for kind in dict.fromkeys(("cpu", sys.argv[1])):
    print(native.build(kind, progress=print))
    assert native.load(kind).loaded, f"{kind}: {native.load(kind).reason}"
for op in OPS:
    print(op, available_backends(op, sys.argv[1]))' $device

if [ $device = cuda ]; then
    step test-native "${pytest[@]}" --device cuda --backend native "${tests[@]}"
    triton_tests=(hybrid_norm:quantile hybrid_norm:spatial "hybrid_norm:not quantile and not spatial" crop_ssi:
        channel_kl: backproject:)
    step test-triton "${in_parallel[@]}" "${triton_tests[@]}" -- "${pytest[@]}" --device cuda --backend triton
    step test-library "${pytest[@]}" --device cuda "$repository/tests/test_ops_library.py"
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
    for tool in memcheck racecheck; do
        if [ -n "$sanitizer" ]; then
            # With a cache of memory torch would put tensors side by side, and who reads past one's end gets another's.
            step $tool env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool $tool --error-exitcode 9 \
                --launch-timeout 60 "${one_pass[@]}"
        else
            skip $tool "compute-sanitizer is not installed"
        fi
    done
else
    step test-native "${pytest[@]}" --device cpu --backend native -k "mistakes or no_valid or layout or degenerate" \
        "${tests[@]}"
    # What takes a second on a GPU takes minutes in the interpreter.
    triton_tests=("hybrid_norm:two_zeros and dtype0" "crop_ssi:test_precision and dtype0"
        "channel_kl:test_precision and dtype0" "backproject:test_precision and dtype0 and shape0")
    step test-triton env TRITON_INTERPRET=1 "${in_parallel[@]}" "${triton_tests[@]}" -- \
        "${pytest[@]}" --device cpu --backend triton
    step test-library "${pytest[@]}" --device cpu -k "same_bits or default_device or autocast" \
        "$repository/tests/test_ops_library.py"
    step memcheck "${one_pass[@]}"
    step racecheck env TRITON_INTERPRET=1 "${one_pass[@]}" --backend triton --only "small range float32 valid"
fi

if [ $device = cuda ]; then
    few=(--kernel all --contexts all --shape 4x560x560)
    # The formulations that copy the maps once per context take tens of GB here, and seconds.
    many=(--kernel all --contexts all --shape 32x560x560 --backend native,triton,reference,kl-div,meshgrid)
    cold=(--kernel all --contexts all --shape 4x560x560 --backend native,triton --cold)
    scaling=(--kernel all --scaling)
    compile=(--kernel all --shape 4x560x560 --backend native,reference,compile)
else
    # Two dozen rows or fewer each, since the memory of every row is measured in a process of its own.
    few=(--kernel all --contexts quantile --shape 2x24x32 --repeats 2 --backend native,reference)
    many=(--kernel channel-kl --shape 3x24x32 --repeats 2 --backend native,reference,kl-div)
    cold=(--kernel crop-ssi --shape 2x24x32 --repeats 2 --backend native)
    scaling=(--kernel backproject --scaling --shape 2x32x48 --repeats 2)
    compile=(--kernel backproject --shape 2x24x32 --repeats 2 --backend native,reference,compile)
fi
for dtype in float32 bfloat16; do
    bench $dtype-few --dtype $dtype "${few[@]}"
done
for dtype in float32 bfloat16; do
    bench $dtype-many --dtype $dtype "${many[@]}"
done
bench cold "${cold[@]}"
bench scaling "${scaling[@]}"
# The baseline that compiles.
bench compile "${compile[@]}"

measured=()
for entry in "${steps[@]}"; do
    [ -e "$out/${entry%:*}.json" ] && measured+=("$out/${entry%:*}.json")
done
if ((${#measured[@]})); then
    step tables bash -c '"${@:2}" >"$1.part" && mv "$1.part" "$1"' - "$out/tables.md" \
        "$python" "$repository/benchmarks/table.py" "${measured[@]}"
fi

printf '%d s in all; logs and JSON in %s\n' "$SECONDS" "$out"
exit $failed
