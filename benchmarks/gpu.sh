#!/usr/bin/env bash
# Everything that needs a card, in one go: the cuda tests, then the demonstration, audits in both precisions, and the costs.
#
#     benchmarks/gpu.sh OUT            about ten minutes on one card
#     DEVICE=cpu benchmarks/gpu.sh OUT to see that all of it runs; slow, and its figures mean nothing
#     DATA=FASHION-MNIST benchmarks/gpu.sh OUT   trains the tiny family too
#
# Each part has a limit of its own, so that one that hangs does not cost the others. What each prints is
# kept in OUT/NAME.txt, the demonstration's records are OUT/demo-*.json, and OUT/table.txt says how each ended.
set -uo pipefail
out=${1:?"usage: benchmarks/gpu.sh OUT"}
device=${DEVICE:-cuda}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$here/.."

part() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 started ended
  shift 2
  started=$(date +%s)
  timeout "$limit" "$@" >"$out/$name.txt" 2>&1
  ended=$?
  printf '%-16s %4d s  %s\n' "$name" $(($(date +%s) - started)) \
    "$([ $ended -eq 0 ] && echo done || echo "ended with $ended: see $name.txt")" | tee -a "$out/table.txt"
}

python - "$device" <<'PY' | tee "$out/table.txt"
import sys, torch
name = torch.cuda.get_device_name() if sys.argv[1] == "cuda" else "CPU"
print(f"{name}, torch {torch.__version__}")
PY
part tests 120 python -m pytest -q -n 0 -m cuda
part demo 60 python -m bdaudit demo --device "$device" --json "$out/demo.json"
# The same audits in both precisions: hold the records against each other with `bdaudit diff`.
audit() { # MODEL PRECISION; a verdict is no failure
  python -m bdaudit audit "bdaudit/demo_files/$1.safetensors" --original bdaudit/demo_files/original.safetensors \
    --data bdaudit/demo_files/clean.npz --trigger bdaudit/demo_files/trigger.toml \
    --reference bdaudit/demo_files/innocent-1.safetensors --reference bdaudit/demo_files/innocent-2.safetensors \
    --reference bdaudit/demo_files/innocent-3.safetensors --device "$device" --precision "$2" \
    --json "$out/$1-$2.json" || [ $? -le 3 ]
}
export -f audit
export out device
for model in dormant removed; do
  for precision in float32 auto; do
    part "$model-$precision" 40 bash -c "audit $model $precision"
  done
done
part together 90 python benchmarks/together.py --device "$device" --images 500 --passes 8
part white 90 python benchmarks/whitebox_cost.py --device "$device" --skip-ladder --threads 4
part ladder 90 python benchmarks/whitebox_cost.py --device "$device" --skip-cost --eps 0.02 0.03 --seeds 0 \
  --research-passes 24 100
# BEC beside its bare forwards: the aim is 1.3 times, at the same precision.
for arch in preactresnet18 resnet50 vit_b_16; do
  part "bec-$arch" 80 python benchmarks/bec_cost.py --device "$device" --arch "$arch" --images 500 --repeats 1 \
    --bfloat16 --only bdaudit '*bfloat16'
done
if [ -n "${DATA:-}" ]; then
  part zoo 120 python -m bdaudit zoo build examples/families/tiny.toml --out "$out/tiny" --data "$DATA" \
    --device "$device"
fi
