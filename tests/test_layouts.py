"""Every layout of eight devices trains as one device does, and moves what it must."""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.layouts import LAYERS, MODELS, layout, train

STEPS = 20
GOLDENS = Path(__file__).parent / "goldens" / "collectives.json"
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
KINDS += ("collective-permute",)
IN_CI = ("data=2,fsdp=2,tensor=2", "fsdp=2,tensor=2,context=2")
LAYOUTS = (
    *IN_CI,
    "data=8",
    "fsdp=8",
    "data=2,fsdp=4",
    "data=4,tensor=2",
    "data=2,tensor=2,context=2",
    "fsdp=4,context=2",
)
# Causal rows in a ring are Llama's in CI, learned positions in one are BERT's.
SLOW = {(family, sizes) for family in MODELS for sizes in LAYOUTS if sizes not in IN_CI}
SLOW.add(("gpt2", "fsdp=2,tensor=2,context=2"))
CELLS = [
    pytest.param(
        family,
        sizes,
        marks=pytest.mark.slow if (family, sizes) in SLOW else (),
        id=f"{family} {sizes}",
    )
    for family in MODELS
    for sizes in LAYOUTS
]


@cache
def alone(family, **options):
    return train(family, layout("data=1"), STEPS, **options)


def collectives(program: str) -> list[tuple[str, str]]:
    """Kind and shape of each collective of a compiled program."""
    kinds = "|".join(KINDS)
    found = re.findall(rf"= (\(?\w+\[.*?) ({kinds})(?:-start)?\(", program)
    return [(kind, shape) for shape, kind in found]


@pytest.mark.parametrize(("family", "sizes"), CELLS)
def test_a_layout_trains_as_one_device(family, sizes, capfd):
    found, wanted = train(family, layout(sizes), STEPS), alone(family)
    said = capfd.readouterr().err
    assert "Involuntary full rematerialization" not in said
    assert wanted.losses[-1] < 0.95 * wanted.losses[0]  # updates were compared
    # Sums in another order: differences of 8e-7 were seen.
    np.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-5)
    assert found.scores["accuracy"] == pytest.approx(
        wanted.scores["accuracy"], rel=1e-6
    )
    assert found.scores["lm"] == pytest.approx(wanted.scores["lm"], rel=1e-5)
    moved = collectives(found.program)
    gathered = [shape for kind, shape in moved if kind == "all-gather"]
    stacks = [each for each in gathered if re.search(rf"\[{LAYERS},\d+,\d+\]", each)]
    assert not stacks  # all layers at once
    expected = json.loads(GOLDENS.read_text()).get(setting(), {})
    if expected:  # another version of XLA has counts of its own
        assert Counter(kind for kind, _ in moved) == expected[f"{family} {sizes}"]


def setting() -> str:
    """What the counts of a program hang on."""
    return f"jax {jax.__version__} {jax.default_backend()}"


@pytest.mark.slow
@pytest.mark.parametrize("sizes", ["fsdp=8", *IN_CI])
@pytest.mark.parametrize(
    "options",
    [
        {"remat": "block"},
        {"remat": "dots"},
        {"remat": "offload"},
        {"remat": "block", "scan": False},
        {"accumulation": 2, "dropout": False},  # microbatches draw masks of their own
        {"accumulation": 4, "remat": "offload", "dropout": False},
    ],
    ids=str,
)
def test_what_saves_memory_changes_no_layout(sizes, options):
    wanted = alone("gpt2", dropout=options.get("dropout", True))
    found = train("gpt2", layout(sizes), STEPS, **options)
    np.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-5)


@pytest.mark.parametrize("remat", ["none", "block"])
def test_kernels_are_gathered_layer_by_layer_and_once_more_backward(remat):
    found = train("gpt2", layout("fsdp=8"), 1, remat=remat)
    gathers = [
        line
        for line in found.program.splitlines()
        if re.search(r"= \S+ all-gather(-start)?\(", line)
    ]
    kernels = 6  # of a layer: query, key, value, output, up, down
    looped = [line for line in gathers if "while/body" in line]
    backward = [line for line in looped if "transpose(" in line]
    assert len(backward) == kernels and len(looped) == 2 * kernels


def test_the_counts_are_those_of_the_version_that_is_pinned():
    """Or no program of ours would be counted any more, and no test would say so."""
    pins = (Path(__file__).parents[1] / "launch/docker/constraints.txt").read_text()
    (version,) = re.findall(r"^jax==(.+)$", pins, re.MULTILINE)
    assert f"jax {version} cpu" in json.loads(GOLDENS.read_text())
