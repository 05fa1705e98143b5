"""Kernels compiled for accelerators that are not here, forward and backward.

Where ``libtpu`` or the CUDA plugin is installed (``pip install jaxlm[plan-tpu]``,
``[plan-gpu]``); CI has neither, and skips these.
"""

import importlib.util
import json
import subprocess
import sys

import pytest

SIZES = {
    "width": 256, "layers": 2, "heads": 4, "mlp_width": 512, "learned_positions": False,
}  # fmt: skip
TPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


def compiled(**given):
    command = [sys.executable, "-m", "tests.models.ahead", json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@TPU
@pytest.mark.parametrize(
    ("model", "reaches"),
    [
        ({"causal": True, "kv_heads": 2}, [None]),
        pytest.param({"score_cap": 30.0}, [16, None], marks=pytest.mark.slow),
    ],
)
def test_splash_compiles_for_a_tpu_on_a_sharded_mesh(model, reaches):
    """Also with heads of 64, half as wide as a TPU's registers."""
    found = compiled(
        topology="v5e:2x2", mesh=[1, 2, 2, 1], model=SIZES | model, reaches=reaches
    )
    assert (found["platform"], found["backend"]) == ("tpu", "splash")
    # Forward, and backward for queries and for keys; a turn of the scan has each kind.
    assert found["kernels"]["tpu_custom_call"] == 3 * len(reaches)
