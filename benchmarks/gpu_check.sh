#!/usr/bin/env bash
# One command on a machine with a GPU: builds in place, runs the GPU tests and the sanitizers, and measures every op.
# Usage: benchmarks/gpu_check.sh [folder of the results, default benchmarks/results]
# It needs no network, and of Python packages only torch, triton, numpy, pytest, setuptools, pybind11 and ninja;
# hypothesis, pytest-xdist and torchvision are used where they are. PYTHON chooses the interpreter. The exit status is 0
# only if everything passed; the results are written in any case, and say what did not.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
output=$(realpath -m "${1:-$root/benchmarks/results}")
cd "$root"
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# step NAME SECONDS COMMAND...: runs it with a time limit, and notes the outcome for the report.
step() {
  local name=$1 limit=$2 started=$SECONDS outcome=passed
  shift 2
  timeout "$limit" "$@" >"$scratch/output-$name" 2>&1 || outcome="FAILED (status $?)"
  tail -n 25 "$scratch/output-$name" | sed "s/^/$name: /"
  printf '== %s: %s, %s s\n' "$name" "$outcome" "$((SECONDS - started))"
  echo "$name: $outcome, $((SECONDS - started)) s" >>"$scratch/outcomes"
  [[ $outcome == passed ]]
}

capability=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || {
  echo "gpu_check.sh: $python finds no CUDA device through torch" >&2
  exit 1
}
step "build for sm_$capability" 240 env SLOWFAST_CUDA=1 SLOWFAST_CUDA_ARCHS="$capability" \
  "$python" setup.py --quiet build_ext --inplace || exit 1
export PYTHONPATH=$PWD

parallel=()
"$python" -c 'import xdist' 2>/dev/null && parallel=(-n "$(($(nproc) < 12 ? $(nproc) : 12))")
step "GPU tests" 240 env FAIL_WITHOUT_CUDA=1 "$python" -m pytest -q tests/ops "${parallel[@]}" \
  --ignore tests/ops/test_sanitizers.py --ignore tests/ops/test_kernel_report.py \
  -k "(cuda or triton) and not cuda-on-cpu" &

# Beside the tests: nothing here is timed.
tiny=("$python" -m benchmarks.gpu --quick --no-peers --output "$scratch/tiny")
step "tiny benchmark" 120 "${tiny[@]}"  # also leaves Triton's kernels compiled for the sanitizers
if sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null); then
  # torch's own kernels are many, and not what is asked about.
  ours=(--kernel-name-exclude kns=native --kernel-name-exclude kns=cudnn --kernel-name-exclude kns=cutlass)
  # Without torch's caching allocator every tensor is an allocation of its own, with an end that memcheck knows.
  step "compute-sanitizer memcheck" 150 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    "$sanitizer" --tool memcheck "${ours[@]}" --report-api-errors no --error-exitcode 9 "${tiny[@]}" &
  step "compute-sanitizer racecheck" 150 "$sanitizer" --tool racecheck "${ours[@]}" --error-exitcode 9 "${tiny[@]}" &
else
  echo "compute-sanitizer: FAILED (not found), so that memcheck and racecheck were not run" >>"$scratch/outcomes"
fi
wait

limit=$((400 - SECONDS > 60 ? 400 - SECONDS : 60))
outcomes=()
while read -r line; do outcomes+=(--outcome "$line"); done <"$scratch/outcomes"
status=0
"$python" -m benchmarks.gpu --output "$output" --seconds "$limit" "${outcomes[@]}" || status=1
! grep FAILED "$scratch/outcomes" || status=1
printf '\n== done in %s s, %s\n' "$SECONDS" "$( ((status == 0)) && echo 'everything passed' || echo 'NOT everything passed')"
exit $status
