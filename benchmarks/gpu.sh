#!/usr/bin/env bash
# All that is checked and measured on a GPU, into a folder: bash benchmarks/gpu.sh FOLDER [STEP ...]
#
# Steps, all by default: build, tests, sanitizers, ops, limits, presets, models, training. Each has a time limit and a log
# of its own, and one that fails stops no other; the whole takes under an hour; name some where there is less
# time. results.json tells what came out, table.md is what to read. Without a GPU every step but the sanitizers runs on
# the CPU, at sizes that take no time: that proves the script.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?a folder for the results}")
shift
steps=" ${*:-build tests sanitizers ops limits presets models training} "
python=${PYTHON:-python3}
mkdir -p "$out"
declare -A outcome
# -P: the folder that this runs in, the sources, would come before what was installed.
pnf=("$python" -P -c "import sys; from pnf.cli import main; sys.exit(main())")

run() { # name, seconds, command...
  local name=$1 limit=$2 start=$SECONDS code=0
  shift 2
  timeout "$limit" "$@" > "$out/$name.log" 2>&1 || code=$?
  outcome[$name]="{\"exit\": $code, \"seconds\": $((SECONDS - start))}"
  echo "$name: exit $code after $((SECONDS - start)) s"
  tail -n 3 "$out/$name.log"
}

wanted() { [[ $steps == *" $1 "* ]]; }

if nvidia-smi > "$out/nvidia-smi.log" 2>&1; then device=cuda; else device=cpu; fi
small=()
pick=()
if [ "$device" = cpu ]; then
  small=(--small)
  # One call of each op is enough where nothing is to be learnt from its time.
  pick=(--every-case -k "squeeze and forward and 8 and not backward")
fi

if wanted build; then
  run build 540 "$python" -m pip install --no-build-isolation --no-deps .
  run doctor 60 "$python" -P -c "import pnf; print(pnf.backends())"
fi
if wanted tests; then
  if [ "$device" = cuda ]; then
    run tests 540 "$python" -P -m pytest tests/ops tests/flows -q -k "cuda or graph or flows"
  else
    run tests 540 "$python" -P -m pytest tests/ops/test_squeeze.py tests/flows/test_fast.py -q
  fi
fi
if wanted sanitizers && [ "$device" = cuda ] && command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck initcheck synccheck; do
    run "$tool" 120 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$python" -P -m pytest tests/ops -q -k "accuracy and cuda and float32"
  done
fi
if wanted ops; then
  run ops 480 "$python" -P -m pytest benchmarks --benchmark-only -q --benchmark-json "$out/ops.json" \
    "${pick[@]:--k$device}"
fi
if wanted limits; then
  run limits 240 "$python" benchmarks/gpu.py "$out/limits.json" --only ops "${small[@]}"
fi
if wanted presets; then
  run presets 540 "$python" benchmarks/gpu.py "$out/presets.json" --only presets --compile "${small[@]}"
fi
if wanted models; then
  run models 480 "$python" benchmarks/models.py "$out/models.json" --no-compile
fi
if wanted training; then
  for detail in bounded identity; do
    run "training-$detail" 270 "${pnf[@]}" train demo --coupling conv --norm batch --hidden 32 --blocks 2 \
      --scales 2 --num-couplings 2 --detail "$detail" --steps "$([ "$device" = cuda ] && echo 2000 || echo 3)" \
      --out "$out/runs/$detail"
  done
  run evaluation 120 "${pnf[@]}" evaluate "$out/runs"
fi

{
  for table in ops models; do
    [ -s "$out/$table.json" ] && "$python" benchmarks/report.py "$out/$table.json" && echo
  done
  for step in limits presets evaluation; do
    [ -s "$out/$step.log" ] && cat "$out/$step.log" && echo
  done
} > "$out/table.md"
{
  echo "{\"device\": \"$device\", \"commit\": \"$(git rev-parse HEAD 2> /dev/null)\", \"steps\": {"
  separator=""
  for name in "${!outcome[@]}"; do
    echo "$separator\"$name\": ${outcome[$name]}"
    separator=","
  done
  echo "}}"
} > "$out/results.json"
cat "$out/results.json"
