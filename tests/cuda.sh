#!/usr/bin/env bash
# Builds the package for the GPU of this machine, then checks, benchmarks and tests it there. Needs no network.
#
#   tests/cuda.sh [PART ...]       all parts but the sanitizers, in order, where none is named
#
#   build      the wheel, for this GPU alone, into build/cuda-site                 (at most 9 minutes)
#   check      every operator against the CPU in float64, tests/cuda_device.py     (2)
#   table      operators beside floors and peers, tests/benchmarks/run_cuda.py     (9)
#   layer      the 7B model's layer beside LLaMA's, one token                      (5)
#   gpu        what is of a GPU alone: graphs, streams, large tensors, CuPy        (6)
#   suite      the operators', the models' and torch's tests on the GPU            (9)
#   memcheck   compute-sanitizer over a few tests of every operator                (9)
#   racecheck                                                                      (9)
#
# A part that fails or runs out of time does not keep the next from running; only without a build nothing can.
#
#   PYTHON=python3     an interpreter with torch, pytest, hypothesis, ml-dtypes, pybind11, scikit-build-core, cmake, ninja
#   OUTPUT=build/cuda  where logs, JSON and summary.txt go
#   SITE=...           the installed package instead of build/cuda-site; empty for the interpreter's own
#   SANITIZER=...      the path of compute-sanitizer
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUTPUT=${OUTPUT:-build/cuda}
SITE=${SITE-$PWD/build/cuda-site}
SANITIZER=${SANITIZER:-compute-sanitizer}
[[ -z $SITE ]] || export PYTHONPATH=$SITE${PYTHONPATH:+:$PYTHONPATH}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

# pytest on the GPU. What another release of torch warns of is no verdict on the kernels.
tested() { "$PYTHON" -m pytest --backend=cuda -q -W default -p no:cacheprovider "$@"; }

several() {  # as options of pytest: several processes, where pytest can
  if "$PYTHON" -c 'import xdist' 2>/dev/null; then printf '%s\n' '-n 6'; fi
}

# Memory without torch's cache, so that an access outside of an array is one outside of an allocation.
sanitized() {
  command -v "$SANITIZER" >/dev/null || { echo "compute-sanitizer is not installed"; return 1; }
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$SANITIZER" --tool "$1" --kernel-name kns=megalodon --error-exitcode 3 \
    "$PYTHON" -m pytest --backend=cuda -q -W default -p no:cacheprovider tests/ops/test_golden.py \
    tests/ops/test_reference.py -k "explicit and (golden or bfloat16 or float32)"
}

build() {
  "$PYTHON" -m pip install --quiet --no-build-isolation --no-deps --upgrade --target build/cuda-site \
    -C build-dir=build/cuda-objects -C cmake.define.MEGALODON_CORE_CUDA=AUTO -C cmake.define.MEGALODON_STUBS=OFF . &&
    "$PYTHON" -c 'from megalodon_core import cuda; print(*cuda.devices(), sep=", ")'
}
check() { "$PYTHON" tests/cuda_device.py --output "$OUTPUT/check.json"; }
table() { "$PYTHON" tests/benchmarks/run_cuda.py --sections operators long --output "$OUTPUT/table"; }
layer() { "$PYTHON" tests/benchmarks/run_cuda.py --sections layer decode --output "$OUTPUT/layer"; }
gpu() { tested --junitxml="$OUTPUT/gpu.xml" tests/gpu tests/test_dlpack.py; }
suite() {
  tested $(several) --junitxml="$OUTPUT/suite.xml" tests/ops tests/model tests/test_precision.py tests/test_torch.py
}
memcheck() { sanitized memcheck; }
racecheck() { sanitized racecheck; }

declare -A minutes=([build]=9 [check]=2 [table]=9 [layer]=5 [gpu]=6 [suite]=9 [memcheck]=9 [racecheck]=9)
order=(build check table layer gpu suite memcheck racecheck)

parts=("$@")
((${#parts[@]})) || parts=(build check table layer gpu suite)
for part in "${parts[@]}"; do
  if [[ -z ${minutes[$part]+known} ]]; then
    printf -v known '%s, ' "${order[@]}"
    echo "$part: expected one of ${known%, }" >&2
    exit 2
  fi
done

mkdir -p "$OUTPUT"
: >"$OUTPUT/summary.txt"
failed=0
export -f tested several sanitized "${order[@]}"
export PYTHON OUTPUT SANITIZER
for part in "${parts[@]}"; do
  echo "== $part"
  begin=$SECONDS
  timeout --kill-after=10 "${minutes[$part]}m" bash -c "$part" 2>&1 | tee "$OUTPUT/$part.log"
  status=${PIPESTATUS[0]}
  case $status in
    0) verdict=passed ;;
    124 | 137) verdict="ran out of time" ;;
    *) verdict="failed ($status)" ;;
  esac
  ((status == 0)) || failed=1
  printf '%-10s %s, %d s\n' "$part" "$verdict" $((SECONDS - begin)) >>"$OUTPUT/summary.txt"
  [[ $part == build && $status != 0 ]] && break
done
cat "$OUTPUT/summary.txt"
exit $failed
