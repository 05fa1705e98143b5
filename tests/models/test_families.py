"""Every family against transformers and PyTorch: logits, every gradient, every name.

Models are small and random, written by transformers and read by ours. Errors are norms
of differences over norms of torch's figures, at real positions, dropout off. Two
correct fp32 implementations differ by rounding in another order of summation: a few
1e-7 for each layer forward, some ten times that for gradients. 1e-4 stands above this
(the worst gradients differ by 1.5e-5, T5's, which does not scale its scores), and below
the 1e-3 of a wrong GELU or epsilon.
"""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from jaxlm.core.safetensors import open_weights
from jaxlm.models.pretrained import load
from jaxlm.models.weights import their_tensors
from tests.models.families import CASES, SLOW
from tests.models.parity import (
    KINDS,
    Examples,
    build,
    error,
    our_gradients,
    their_gradients,
)

pytestmark = pytest.mark.parity

LIMIT = 1e-4
# Their bias moves all scores of a query alike, which softmax ignores, unless keys
# rotate or are read by position.
KEYS = re.compile(r"(?<=\.)(?:pos_)?k(ey)?(_lin|_proj)?\.bias$")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in CASES
    ],
)
def pair(request, torch, tmp_path_factory):
    """A case on both sides: logits and gradients of the same examples."""
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    theirs = build(torch, case, folder)
    model = load(str(folder))
    examples = Examples(model, case.least)
    logits = their_gradients(torch, theirs, examples)
    ours, gradients = our_gradients(model, examples)
    return SimpleNamespace(
        name=request.param,
        folder=folder,
        theirs=theirs,
        model=model,
        kinds=examples.kinds,
        logits=(ours, logits),
        gradients=gradients,
    )


@pytest.mark.parametrize("kind", dict.fromkeys(KINDS))
def test_logits_equal_those_of_torch(pair, kind):
    ours, theirs = (logits[pair.kinds == kind] for logits in pair.logits)
    assert len(ours) and ours.shape == theirs.shape
    found = error(ours, theirs)
    print(f"{pair.name}, {kind}: logits {found:.1e}")
    assert found <= LIMIT


def test_every_gradient_equals_that_of_torch(pair):
    theirs = named_gradients(pair.theirs, pair.model.checkpoint.family, pair.gradients)
    worst, where = 0.0, ""
    for name, gradient in theirs.items():
        found = np.linalg.norm(pair.gradients[name] - gradient) / scale(theirs, name)
        if found > worst:
            worst, where = found, name
    print(f"{pair.name}: gradients {worst:.1e} ({where})")
    assert worst <= LIMIT, where
    assert set(pair.gradients) == set(theirs)


def named_gradients(model, family, ours):
    """Gradients by canonical name; a tied parameter once, by the name ours has.

    One without a gradient is in no path to these logits: ours is absent, or zero.
    """
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(family.canonical(name))
    found = {}
    for parameter, spellings in names.items():
        mine = [name for name in spellings if name in ours]
        if parameter.grad is None:
            assert not any(ours[name].any() for name in mine), spellings
            found |= {name: np.zeros_like(ours[name]) for name in mine}
        else:
            assert len(mine) == 1, f"{spellings} are {mine} of ours"
            found[mine[0]] = parameter.grad.numpy()
    return found


def scale(gradients, name):
    """What an error is measured against: the gradient's norm.

    Where the true gradient of a key's bias is zero, both sides hold rounding, some 1e-7
    of what a bias of the queries has, which is the scale then.
    """
    norm = np.linalg.norm(gradients[name])
    if KEYS.search(name):
        queries = KEYS.sub(query_of, name)
        wide = np.linalg.norm(gradients[queries])
        return wide if norm <= 1e-5 * wide else norm
    return norm


def query_of(key):
    """``key.bias`` to ``query.bias``, ``k_lin.bias`` to ``q_lin.bias``."""
    long, end = key.groups()
    return ("query" if long else "q") + (end or "") + ".bias"


def test_names_of_weights_go_there_and_back_bit_for_bit(pair):
    family, files = pair.model.checkpoint.family, open_weights(pair.folder)
    written = {family.canonical(name): files.read(name) for name in files.names}
    tensors = their_tensors(pair.model.checkpoint, pair.model.params, pair.model.head)
    assert set(tensors) <= set(written)
    for name, value in written.items():
        if name in tensors:
            np.testing.assert_array_equal(tensors[name], value, err_msg=name)
        else:
            assert family.ignores(name), name
