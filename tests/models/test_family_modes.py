"""Models of every structure, however they run: scanned, recomputed, in bf16."""

from copy import deepcopy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.models.pretrained import load
from tests.models.families import CASES
from tests.models.parity import Examples, build, error, our_gradients

pytestmark = pytest.mark.parity

# What a stack may be: a repeated pattern of local and global layers of which some are
# left over, groups run again and again, a first layer unlike the others, two stacks,
# heads that share keys, one kind of layer; and in CI how each is recomputed.
STRUCTURES = {
    "ModernBert-masked": ("none",),
    "Gemma3-causal": ("block",),
    "Albert-groups": ("none", "dots"),
    "DebertaV2-convolution": ("dots",),
    "T5-gated": ("block",),
    "Llama-biased": ("dots",),
    "Bert-masked": (),
}
REMAT = ("none", "block", "dots")
ROUNDED = ("Bert-masked", "ModernBert-masked", "Albert-groups", "DebertaV2-masked")
ROUNDED += ("GPT2-causal", "GPTNeoX-causal", "Llama-biased", "Gemma3-causal")
ROUNDED += ("T5-untied",)


@pytest.fixture(scope="module")
def made(torch, tmp_path_factory):
    """A case's model of transformers and its folder, made once."""
    done = {}

    def make(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            done[name] = build(torch, CASES[name], folder), str(folder)
        return done[name]

    return make


@pytest.fixture(scope="module")
def unrolled(made):
    """Logits and gradients of a layer after another, nothing recomputed."""
    done = {}

    def run(name):
        if name not in done:
            model = load(made(name)[1])
            done[name] = our_gradients(model, Examples(model, CASES[name].least))
        return done[name]

    return run


@pytest.mark.parametrize(
    ("name", "remat"),
    [
        pytest.param(name, remat, marks=[] if remat in here else [pytest.mark.slow])
        for name, here in STRUCTURES.items()
        for remat in REMAT
    ],
)
def test_scanned_layers_equal_unrolled_ones(made, unrolled, name, remat):
    model = load(made(name)[1], scan=True, remat=remat)
    check_equal(
        our_gradients(model, Examples(model, CASES[name].least)), unrolled(name)
    )


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["block", "dots"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_unrolled_layers_recomputed_equal_those_kept(made, unrolled, name, remat):
    model = load(made(name)[1], remat=remat)
    check_equal(
        our_gradients(model, Examples(model, CASES[name].least)), unrolled(name)
    )


def check_equal(found, expected):
    """The same sums in another order: 1e-7 an operation, some hundred of them deep.

    The bias of keys has gradients of rounding alone (``test_families``): a norm below a
    millionth of the largest counts as zero.
    """
    (logits, gradients), (wanted, kept) = found, expected
    assert error(logits, wanted) <= 1e-5
    assert gradients.keys() == kept.keys()
    floor = 1e-6 * max(np.linalg.norm(each) for each in kept.values())
    for name, gradient in kept.items():
        scale = max(np.linalg.norm(gradient), floor)
        assert np.linalg.norm(gradients[name] - gradient) <= 2e-5 * scale + floor, name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ROUNDED else [pytest.mark.slow])
        for name in CASES
    ],
)
def test_bf16_errs_no_more_than_that_of_torch(torch, made, name):
    theirs, folder = made(name)
    exact, rounded = load(folder), load(folder, dtype=jnp.bfloat16)
    examples = Examples(exact, CASES[name].least)
    with torch.no_grad():
        wanted = examples.theirs(torch, theirs).numpy()
        half = deepcopy(theirs).to(torch.bfloat16)
        peer = error(examples.theirs(torch, half).float().numpy(), wanted)
    ours = error(jax.jit(lambda p: examples.ours(rounded, p))(rounded.params), wanted)
    print(f"{name}: bf16 {ours:.1e}, torch's {peer:.1e}")
    # Ours keeps norms, scores and heads in fp32. Norms over the 20 numbers of a text
    # scatter by half, either way.
    assert 0 < ours <= 2 * peer
