#!/usr/bin/env bash
# Everything that needs a card, in one go: the cuda tests, what the work costs beside its bare passes, the
# demonstration, and with data a family built and audited in both precisions.
#
#     benchmarks/gpu.sh OUT                      about four minutes on one card
#     DATA=FASHION-MNIST benchmarks/gpu.sh OUT   with the family, some eight
#     DEVICE=cpu benchmarks/gpu.sh OUT           to see that all of it runs; its figures mean nothing
#
# Each part has a limit of its own, so that one that hangs does not cost the others. What each prints is
# kept in OUT/NAME.txt, the records beside it, and OUT/table.txt says how each ended.
set -uo pipefail
out=${1:?"usage: benchmarks/gpu.sh OUT"}
device=${DEVICE:-cuda}
workers=${WORKERS:-8}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$here/.." || exit
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

part() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 started ended
  shift 2
  started=$(date +%s)
  timeout "$limit" "$@" >"$out/$name.txt" 2>&1
  ended=$?
  printf '%-16s %4d s  %s\n' "$name" $(($(date +%s) - started)) \
    "$([ $ended -eq 0 ] && echo "done" || echo "ended with $ended: see $name.txt")" | tee -a "$out/table.txt"
}

watched() { # NAME SECONDS COMMAND...; sees five times a second how busy the card is, and what is taken of it
  : >"$out/$1-card.txt"
  local watcher=
  if [ "$device" != cpu ]; then
    nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader,nounits -lms 200 \
      >"$out/$1-card.txt" 2>/dev/null &
    watcher=$!
  fi
  part "$@"
  [ -z "$watcher" ] || { kill "$watcher" && wait "$watcher"; } 2>/dev/null
  awk -F, -v name="$1" '{ busy += $1; if ($2 > most) most = $2 }
    END { if (NR) printf "%-16s card %d %% busy, at most %d MiB taken\n", name, busy / NR, most }' \
    "$out/$1-card.txt" | tee -a "$out/table.txt"
}

python3 - "$device" <<'PY' | tee "$out/table.txt"
import sys, torch
name = torch.cuda.get_device_name() if sys.argv[1] == "cuda" else "CPU"
print(f"{name}, torch {torch.__version__}")
PY
mapfile -t tests < <(grep -rl 'mark\.cuda' tests --include='test_*.py')
# A plugin that some machines have warns beside xdist, and warnings are errors.
part tests 120 python3 -m pytest -q -p no:benchmark -n "$workers" -m cuda "${tests[@]}"
watched demo 60 python3 -m bdaudit demo --device "$device" --json "$out/demo.json"
part costs 150 python3 benchmarks/on_card.py --device "$device"
cat "$out/costs.txt" | tee -a "$out/table.txt"
if [ -n "${DATA:-}" ]; then
  family=${FAMILY:-examples/families/fashion-mnist-wide.toml}
  watched zoo "${ZOO_LIMIT:-150}" python3 -m bdaudit zoo build "$family" --out "$out/family" --data "$DATA" \
    --device "$device" --workers "$workers" --threads 1
  for precision in float32 auto; do
    watched "bench-$precision" "${BENCH_LIMIT:-120}" python3 -m bdaudit bench "$out/family" --out "$out/$precision" \
      --device "$device" --precision "$precision" --workers "$workers" --threads 1
  done
  part verdicts 30 python3 benchmarks/precisions.py "$out/float32" "$out/auto"
  cat "$out/verdicts.txt" | tee -a "$out/table.txt"
fi
