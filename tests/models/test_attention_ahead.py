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
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@TPU
@pytest.mark.parametrize(
    ("model", "reaches", "length", "kernels"),
    [
        # Forward, and backward: one kernel for rows of one block, else two, for queries
        # and for keys.
        ({"causal": True, "kv_heads": 2}, [None], 256, 2),
        ({"causal": True, "kv_heads": 2}, [None], 1024, 3),
        pytest.param({"score_cap": 30.0}, [16, None], 256, 2, marks=pytest.mark.slow),
    ],
)
def test_splash_compiles_for_a_tpu_on_a_sharded_mesh(model, reaches, length, kernels):
    """Also with heads of 64, half as wide as a TPU's registers."""
    found = compiled(
        topology="v5e:2x2",
        mesh=[1, 2, 2, 1],
        model=SIZES | model,
        reaches=reaches,
        length=length,
    )
    assert (found["platform"], found["backend"]) == ("tpu", "splash")
    # A turn of the scan has each kind of layers.
    assert found["kernels"]["tpu_custom_call"] == kernels * len(reaches)


GPU = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="the CUDA plugin is not installed",
)
CUDNN = {"__cudnn$fmhaSoftmax": 1, "__cudnn$fmhaSoftmaxBackward": 1}


@GPU
@pytest.mark.parametrize(
    ("model", "given", "backend", "kernels"),
    [
        ({"kv_heads": 2}, {"packing": False, "reaches": [20]}, "cudnn", CUDNN),
        ({"kv_heads": 2}, {"reaches": [20]}, "cudnn", CUDNN),
        # Forward, the sums that backward needs, and backward.
        ({"kv_heads": 2}, {"backend": "triton"}, "triton", {"__gpu$xla.gpu.triton": 3}),
    ],
    ids=["cudnn, padded rows", "cudnn, packed rows", "triton"],
)
def test_kernels_compile_for_a_gpu_on_a_sharded_mesh(model, given, backend, kernels):
    """cuDNN makes its own plans when it runs, which no compiler here can try."""
    model = SIZES | {"causal": True} | model
    found = compiled(topology="h100:4", mesh=[1, 2, 2, 1], model=model, **given)
    assert (found["platform"], found["backend"]) == ("gpu", backend)
    assert found["kernels"] == kernels


@TPU
@pytest.mark.parametrize(
    "topology", ["v5e:2x2", pytest.param("h100:4", marks=[GPU, pytest.mark.slow])]
)
def test_rings_compile_for_accelerators(topology):
    model = SIZES | {"causal": True, "kv_heads": 2}
    found = compiled(topology=topology, mesh=[1, 1, 2, 2], model=model)
    assert found["backend"] == "ring"
    # Keys, values, segments; backward also the gradients of keys and values.
    assert found["collectives"]["collective-permute"] >= 5
