#!/usr/bin/env bash
# All that is checked and measured on a GPU, into a folder: bash benchmarks/gpu.sh FOLDER [STEP ...]
#
# Steps, in this order, all by default: build, flows, ops, memcheck, racecheck, limits, races, presets, stages, models,
# training. What is wrong is found before anything is timed. Each step ends within ten minutes, by SIGINT at the latest,
# after which it prints a table of what it has; one that fails stops no other. results.json tells what came out so far,
# table.md is what to read. Without a GPU every step but the sanitizers runs on the CPU, at sizes that take no time: that
# proves the script.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?a folder for the results}")
shift
steps=" ${*:-build flows ops memcheck racecheck limits races presets stages models training} "
python=${PYTHON:-python3}
mkdir -p "$out"
outcomes=()
# -P: the folder that this runs in, the sources, would come before what was installed.
pnf=("$python" -P -c "import sys; from pnf.cli import main; sys.exit(main())")
pytest=("$python" -P -m pytest -q)

wanted() { [[ $steps == *" $1 "* ]]; }

save() { # what there is so far
  local name IFS=,
  {
    for name in ops limits presets stages models evaluation; do
      [ -s "$out/$name.md" ] && cat "$out/$name.md" && echo
    done
  } > "$out/table.md"
  echo "{\"device\": \"$device\", \"commit\": \"$(git rev-parse HEAD 2> /dev/null)\", \"steps\": {${outcomes[*]}}}" \
    > "$out/results.json"
}

run() { # name, seconds, command...
  local name=$1 limit=$2 start=$SECONDS code=0
  shift 2
  timeout -s INT -k 20 "$limit" "$@" > "$out/$name.log" 2>&1 || code=$?
  outcomes+=("\"$name\": {\"exit\": $code, \"seconds\": $((SECONDS - start))}")
  echo "== $name: exit $code after $((SECONDS - start)) s"
  save
  tail -n "${lines:-5}" "$out/$name.log"
}

table() { # name, seconds, command...: its table is at the end of what it prints
  lines=40 run "$@"
  sed -n '/^- /,$p' "$out/$1.log" > "$out/$1.md"
  save
}

if nvidia-smi > "$out/nvidia-smi.log" 2>&1; then device=cuda; else device=cpu; fi
command -v nvcc > /dev/null || PATH=$PATH:/usr/local/cuda/bin

if [ "$device" = cuda ]; then
  build=(-C cmake.define.PNF_CUDA=ON -C cmake.define.PNF_CUDA_ARCHITECTURES=native)
  flows=(tests/gpu -m "")
  # Most of the time is spent on compiling kernels, which all cores can share.
  ops=(tests/ops -k cuda)
  "$python" -c "import xdist" 2> /dev/null && ops+=(-n 8)
  small=()
  races=(-k cuda)
  train=2000
else
  build=()
  flows=(tests/flows/test_fast.py -k "dense and bounded")
  ops=(tests/ops/test_squeeze.py)
  small=(--small)
  # One call of each op is enough where nothing is to be learnt from its time.
  races=(--every-case -k "squeeze and forward and 8 and not backward")
  train=3
fi

if wanted build; then
  run build 580 "$python" -m pip install --no-build-isolation --no-deps "${build[@]}" .
  lines=40 run doctor 60 "${pnf[@]}" doctor
fi
wanted flows && run flows 580 "${pytest[@]}" "${flows[@]}"
wanted ops && run ops 580 "${pytest[@]}" "${ops[@]}"
for tool in memcheck racecheck; do
  if wanted $tool && [ "$device" = cuda ] && command -v compute-sanitizer > /dev/null; then
    # Every op once, with tensors at crooked addresses; its kernels are compiled by now.
    run "$tool" 400 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "${pytest[@]}" tests/gpu/test_ops.py -m "" -k "layouts and offset"
  fi
done
wanted limits && table limits 400 "$python" benchmarks/gpu.py "$out/limits.json" ops "${small[@]}"
if wanted races; then
  run races 580 "${pytest[@]}" benchmarks --benchmark-only --benchmark-json "$out/races.json" "${races[@]}"
  [ -s "$out/races.json" ] && "$python" benchmarks/report.py "$out/races.json" > "$out/ops.md" && cat "$out/ops.md"
fi
wanted presets && table presets 580 "$python" benchmarks/gpu.py "$out/presets.json" presets "${small[@]}"
wanted stages && table stages 580 "$python" benchmarks/gpu.py "$out/stages.json" stages "${small[@]}"
wanted models && table models 580 "$python" benchmarks/models.py "$out/models.json" --no-compile
if wanted training; then
  for detail in bounded identity; do
    run "training-$detail" 270 "${pnf[@]}" train demo --coupling conv --norm batch --hidden 32 --blocks 2 \
      --scales 2 --num-couplings 2 --detail "$detail" --steps "$train" --out "$out/runs/$detail"
  done
  lines=40 run evaluation 120 "${pnf[@]}" evaluate "$out/runs"
  cp "$out/evaluation.log" "$out/evaluation.md"
fi
save
cat "$out/results.json"
