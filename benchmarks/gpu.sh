#!/usr/bin/env bash
# All that is measured and checked on a GPU, into a folder: bash benchmarks/gpu.sh FOLDER
#
# Builds from the tree with the machine's own PyTorch, runs the tests on the device, compute-sanitizer over those of the
# extension, the benchmarks of the ops and the table of whole models. Every step has a time limit and
# a log of its own, and one that fails stops no other; results.json tells what came out. Without a GPU every step but
# the sanitizer runs on the CPU, which proves the script.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?a folder for the results}")
python=${PYTHON:-python3}
mkdir -p "$out"
declare -A outcome

run() { # name, seconds, command...
  local name=$1 limit=$2 start=$SECONDS code=0
  shift 2
  timeout "$limit" "$@" > "$out/$name.log" 2>&1 || code=$?
  outcome[$name]="{\"exit\": $code, \"seconds\": $((SECONDS - start))}"
  echo "$name: exit $code after $((SECONDS - start)) s"
  tail -n 3 "$out/$name.log"
}

if nvidia-smi > "$out/nvidia-smi.log" 2>&1; then device=cuda; else device=cpu; fi

run build 150 "$python" -m pip install --no-build-isolation --no-deps .
run doctor 60 "$python" -c "import pnf; print(pnf.backends())"
run tests 240 "$python" -m pytest tests/ops tests/flows -q -x -k "$device or flows"
if [ "$device" = cuda ] && command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck initcheck synccheck; do
    run "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$python" -m pytest tests/ops/test_masking.py tests/ops/test_weight_norm.py -q -k "accuracy and cuda and float32"
  done
fi
run ops 150 "$python" -m pytest benchmarks --benchmark-only -q --benchmark-json "$out/ops.json" -k "$device"
run models 150 "$python" benchmarks/models.py "$out/models.json" --no-compile

{
  for table in ops models; do
    [ -s "$out/$table.json" ] && "$python" benchmarks/report.py "$out/$table.json" && echo
  done
} > "$out/table.md"
{
  echo "{\"device\": \"$device\", \"steps\": {"
  separator=""
  for name in "${!outcome[@]}"; do
    echo "$separator\"$name\": ${outcome[$name]}"
    separator=","
  done
  echo "}}"
} > "$out/results.json"
cat "$out/table.md"
