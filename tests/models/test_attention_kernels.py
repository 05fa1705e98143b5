"""Kernels against the dense reference, with packing and padding at once.

They run here by Pallas's interpreter, on a CPU; ``test_attention_ahead.py`` compiles
them for the accelerators that they are for.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.mesh import NO_RULES, Rules, make_mesh
from jaxlm.models.attention import Visibility
from jaxlm.models.backends import DENSE, Backend
from jaxlm.models.kernels.cudnn import pieces, planned_for
from jaxlm.models.kernels.dispatch import attention
from jaxlm.models.stacks import is_kernel, rematerialise

# Two segments, padding between and after; one segment after padding; one alone; three.
LENGTHS = [
    [(1, 60), (0, 11), (2, 70), (0, 9)],
    [(0, 13), (1, 137)],
    [(1, 150)],
    [(1, 1), (2, 128), (3, 20), (0, 1)],
]
SEGMENTS = np.array(
    [np.concatenate([[n] * count for n, count in row]) for row in LENGTHS], np.int32
)
RULES = Rules.of({"batch": ["data"], "heads": ["tensor"], "sequence": ["context"]})
# What is seen, how many heads of queries and keys, how large, and the cap.
CASES = {
    "full": ({}, (4, 4, 16), None),
    "causal": ({"causal": True}, (4, 4, 16), None),
    "grouped": ({"causal": True}, (4, 2, 16), None),
    "one key": ({"causal": True}, (2, 1, 24), None),
    "window": ({"causal": True, "reach": 20}, (2, 2, 16), None),
    "itself": ({"causal": True, "reach": 0}, (2, 2, 16), None),
    "local": ({"reach": 40}, (2, 2, 16), None),
    "capped": ({}, (2, 2, 16), 3.0),
    "all": ({"causal": True, "reach": 100}, (4, 2, 16), 3.0),
}


def inputs(sizes, dtype=np.float32):
    heads, groups, size = sizes
    random = np.random.default_rng(0)
    shapes = [(*SEGMENTS.shape, n, size) for n in (heads, groups, groups, heads)]
    return [jnp.asarray(random.normal(size=shape), dtype) for shape in shapes]


def outputs_and_gradients(
    backend,
    seen,
    sizes,
    cap,
    *,
    rules=NO_RULES,
    dtype=np.float32,
    rows=SEGMENTS,
    most=None,
):
    """What real tokens get, and the gradients of a weighted sum of it."""
    *arrays, weights = inputs(sizes, dtype)

    def attend(*arrays):
        segments = jnp.asarray(rows)
        seen_by = Visibility(segments, segments, most=most, backend=backend, **seen)
        visible = seen_by.with_bias()
        y = attention(*arrays, visible, scale=0.3, cap=cap, rules=rules)
        assert y.dtype == arrays[0].dtype
        return jnp.where(rows[:, :, None, None] > 0, y, 0)

    def loss(*arrays):
        y = attend(*arrays)
        return (y * weights).astype(jnp.float32).sum(), y

    (_, y), gradients = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    )(*arrays)
    return y, *gradients


def compare(found, wanted, atol):
    for name, one, other in zip("yqkv", found, wanted, strict=True):
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        np.testing.assert_allclose(one, other, atol=atol, err_msg=name)


KERNELS = [
    *(("splash", case) for case in CASES),
    *(("triton", case) for case in ("full", "causal", "grouped", "one key")),
]


@pytest.mark.parametrize("case", ["full", "causal", "grouped", "window", "all"])
def test_splash_attention_of_one_block_has_one_kernel_backward(case):
    found = outputs_and_gradients(
        Backend("splash", interpret=True, block=256), *CASES[case]
    )
    compare(found, outputs_and_gradients(DENSE, *CASES[case]), atol=2e-5)


@pytest.mark.parametrize(("name", "case"), KERNELS)
def test_a_kernel_equals_the_dense_reference(name, case):
    backend = Backend(name, interpret=True, block=128)
    found = outputs_and_gradients(backend, *CASES[case])
    # Sums of at most 150 fp32 products of numbers up to 4, in another order.
    compare(found, outputs_and_gradients(DENSE, *CASES[case]), atol=2e-5)


@pytest.mark.parametrize("name", ["splash", "triton"])
def test_a_kernel_computes_scores_in_fp32_where_inputs_are_bf16(name):
    backend, case = Backend(name, interpret=True), CASES["causal"]
    found = outputs_and_gradients(backend, *case, dtype=jnp.bfloat16)
    # Results near 2 are 2**-7 apart in bf16, and gradients near 8 are 2**-5.
    wanted = outputs_and_gradients(DENSE, *case, dtype=jnp.float32)
    compare(found, wanted, atol=0.1)


@pytest.mark.parametrize("name", ["splash", "triton"])
def test_each_device_runs_a_kernel_on_its_own_rows_and_heads(name):
    mesh, _ = make_mesh({"data": 2, "tensor": 2, "context": 1})
    backend, case = Backend(name, interpret=True), CASES["grouped"]
    with jax.set_mesh(mesh):
        found = outputs_and_gradients(backend, *case, rules=RULES)
    compare(found, outputs_and_gradients(DENSE, *case), atol=2e-5)


def test_blocks_divide_every_length():
    from jaxlm.models.kernels.splash import block_size

    sizes = [block_size(length, 512) for length in (128, 384, 640, 1024, 4096)]
    assert sizes == [128, 384, 128, 512, 512]


CUDNN = ["full", "causal", "grouped", "window", "itself"]


@pytest.mark.parametrize("case", CUDNN)
def test_what_cudnn_is_asked_for_is_the_dense_reference_of_padded_rows(case):
    """By XLA, since cuDNN runs on its cards alone: its arguments, not its numbers."""
    lengths = np.array([150, 97, 1, 130])
    rows = (np.arange(150) < lengths[:, None]).astype(np.int32)
    backend = Backend("cudnn", interpret=True)
    found = outputs_and_gradients(backend, *CASES[case], rows=rows, most=1)
    wanted = outputs_and_gradients(DENSE, *CASES[case], rows=rows)
    compare(found, wanted, atol=2e-5)


@pytest.mark.parametrize("case", CUDNN)
@pytest.mark.parametrize("most", [3, 7, None])
def test_what_cudnn_is_asked_for_is_the_dense_reference_of_packed_rows(case, most):
    """By XLA, by the places that the kernel is given."""
    backend = Backend("cudnn", interpret=True)
    found = outputs_and_gradients(backend, *CASES[case], most=most)
    compare(found, outputs_and_gradients(DENSE, *CASES[case]), atol=2e-5)


def test_segments_are_told_by_where_they_begin_and_how_long_they_are():
    rows = jnp.array([[1, 1, 2, 2, 2, 0], [0, 0, 3, 3, 0, 1], [0, 0, 0, 0, 0, 0]])
    starts, lengths = pieces(rows, 3)
    assert starts.tolist() == [[0, 2, -1], [5, -1, 2], [0, -1, -1]]
    assert lengths.tolist() == [[2, 3, -1], [1, -1, 2], [1, -1, -1]]


def test_a_program_for_a_gpu_that_is_not_here_is_asked_for_no_gpu_s_ability():
    from jax._src.cudnn import fused_attention_stablehlo as library

    with planned_for(9.0):
        assert library.check_compute_capability("9.0")
        assert not library.check_compute_capability("10.0")
    assert not library.check_compute_capability("9.0")


def test_where_products_are_kept_a_kernel_does_not_run_forward_again():
    """Splash; cuDNN's is a primitive that its cards alone have, Pallas's for GPUs runs
    again, as jax keeps nothing of what is inside of its two jits."""
    *arrays, weights = inputs((2, 2, 16))

    def kernels(remat):
        def attend(*arrays):
            segments = jnp.asarray(SEGMENTS)
            backend = Backend("splash", interpret=True)
            visible = Visibility(segments, segments, backend=backend)
            return attention(*arrays, visible, scale=0.3)

        def loss(*arrays):
            return (rematerialise(attend, remat)(*arrays) * weights).sum()

        program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)
        return str(program).count("= pallas_call[")

    assert kernels("dots") == kernels("none") < kernels("block")


def test_cudnn_s_forward_pass_bears_the_name_that_is_kept():
    from jax._src.cudnn import fused_attention_stablehlo as library

    for primitive in (
        library._dot_product_attention_fwd_p,
        library._dot_product_attention_fwd_p_wrapper,
    ):
        assert is_kernel(primitive)
    assert not is_kernel(library._dot_product_attention_bwd_p)
