#!/usr/bin/env bash
# Check jaxlm on a machine with a GPU: the tiny run, the default job in fp32 and bf16, and
# generation.
#
#   tools/gpu_check.sh [MODEL [DECODER]]
#
# MODEL: a local model directory, where PyPI is out of reach; DECODER: a directory with the
# config.json of a decoder, which then generates with random weights.
#
# Prints the device, the scores and the median tokens per second of each run. Uses the
# python of the environment as it is and installs nothing; runs go to $OUT (default: a
# temporary directory).
set -euo pipefail
cd "$(dirname "$0")/.."
out="${OUT:-$(mktemp -d)}"
model=()
[[ $# -gt 0 ]] && model=("--config.model.pretrained=$1")

python - <<'PY'
import jax, flax, optax
print("jax", jax.__version__, "flax", flax.__version__, "optax", optax.__version__)
print(jax.devices())
if jax.default_backend() == "cpu":
    raise SystemExit("no accelerator: jax sees the CPU only")
PY
python -m jaxlm.main --config=configs/ner.py:tiny --workdir="$out/tiny"
for precision in fp32 bf16; do
  python -m jaxlm.main --config=configs/ner.py --workdir="$out/ner-$precision" \
    --config.train.precision="$precision" "${model[@]}"
  python -m jaxlm.evaluate --workdir="$out/ner-$precision" > "$out/ner-$precision.txt"
  python - "$out/ner-$precision" "$precision" <<'PY'
import json, pathlib, statistics, sys
lines = map(json.loads, (pathlib.Path(sys.argv[1]) / "metrics.jsonl").open())
lines = [line for line in lines]
speeds = [each["tokens_per_second"] for each in lines if each["split"] == "train"]
test = [each for each in lines if each["split"] == "test"][-1]
print(sys.argv[2], "f1", test["f1"], "median tokens/s", statistics.median(speeds))
PY
done
if [[ $# -gt 1 ]]; then
  PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" python tools/gpu_generate.py "$2"
fi
