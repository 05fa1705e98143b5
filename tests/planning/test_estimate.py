"""What is made of a compiler's words: memory, verdicts, time, money."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxlm.planning.compiling import Compiled
from jaxlm.planning.estimate import Plan, read_refusal
from jaxlm.planning.outcome import Outcome, Trial, as_text
from jaxlm.planning.topology import parse_topology
from tests.planning.programs import LOOP

GIB = 2**30
FACTS = {
    "task": "causal_lm",
    "model": "random:llama",
    "parameters": 1000,
    "trainable": 1000,
    "rows": 8,
    "length": 32,
    "tokens_per_step": 256,
    "causal": True,
    "layers": 32,
    "parameter_bytes": GIB,
    "optimizer_bytes": 2 * GIB,
    "batch_bytes": 1000,
    "model_flops_per_token": 3 * 32 * 256 * 64 * 128 / 64,
    "attention_flops_per_token": 0.0,
    "head_flops_per_token": 0.0,
    "layer_flops_per_token": 0.0,
    "trainable_share": 1.0,
    "assumed": ["up to 8 examples in a packed row"],
    "topology": "v5p:4x4x4",
    "mesh": {"data": 1, "fsdp": 64, "tensor": 1, "context": 1},
    "places": [[0, *place] for place in np.ndindex(4, 4, 4)],
    "versions": {"jax": "0.10.2", "libtpu": "0.0.42.1"},
    "compile_seconds": 12.0,
    "memory": {
        "argument": 3 * GIB,
        "output": 3 * GIB,
        "alias": 3 * GIB,
        "temp": 5 * GIB,
        "generated_code": 1000,
        "peak": 6 * GIB,
    },
    "cost_analysis": {"flops": 1.0, "optimal_seconds": -33.9, "bytes accessed": 1.0},
}


def plan(**changes) -> Plan:
    topology = parse_topology("v5p:4x4x4")
    return Plan(topology, Compiled(FACTS | changes, LOOP))


def test_a_tpu_is_compared_by_the_compiler_s_peak_and_a_gpu_by_what_is_set_aside():
    found = plan()
    assert found.reserved == 8 * GIB and found.peak == 6 * GIB
    assert found.needed == 6 * GIB and found.fits
    assert not plan(memory=FACTS["memory"] | {"peak": 96 * GIB}).fits
    gpu = Plan(parse_topology("h100:8"), found.compiled)
    assert gpu.needed == 8 * GIB and gpu.fits
    memory = FACTS["memory"] | {"temp": 79 * GIB}
    assert not Plan(gpu.topology, Compiled(FACTS | {"memory": memory}, LOOP)).fits


@pytest.mark.parametrize(("temp", "said"), [(56, []), (68, ["=0.91 "]), (80, [])])
def test_a_step_beyond_what_jax_takes_of_a_gpu_says_what_it_needs(temp, said):
    """3 GiB of arguments and so many of temporaries, of 79.1."""
    places = [[0, number] for number in range(8)]
    facts = FACTS | {
        "memory": FACTS["memory"] | {"temp": temp * GIB},
        "mesh": {"data": 1, "fsdp": 8, "tensor": 1, "context": 1},
        "places": places,
    }
    found = Plan(parse_topology("h100:8"), Compiled(facts, LOOP))
    lines = [line for line in found.assumptions if "XLA_CLIENT_MEM_FRACTION" in line]
    assert len(lines) == len(said)
    assert all(word in line for word, line in zip(said, lines, strict=True))
    assert not any("MEM_FRACTION" in line for line in plan().assumptions)


def test_a_loop_counts_as_often_as_it_turns():
    found = plan()
    assert found.compiled_flops == 32 * 2 * 256 * 64 * 128
    assert found.timeline.cycles == 32 * 700
    model = FACTS["model_flops_per_token"] * 256 / 64
    assert found.overhead == pytest.approx(found.compiled_flops / model - 1)


def test_mfu_is_the_model_s_flops_over_the_peak():
    found = plan()
    share = found.model_flops / (found.step_seconds * 459e12)
    assert found.mfu == pytest.approx(share)
    assert found.tokens_per_second == 256 / found.step_seconds
    assert found.days(256e6) == pytest.approx(1e6 * found.step_seconds / 86400)
    hours = found.days(256e6) * 24 * 64
    assert found.cost(256e6, 2.0) == pytest.approx(2 * hours)


def test_what_the_compiler_computes_again_is_told():
    text = LOOP.replace("%y", "%y.remat2")
    found = Plan(parse_topology("v5p:4x4x4"), Compiled(FACTS, text))
    assert found.timeline.again == found.compiled_flops
    assert "by the compiler itself" in as_text(Outcome(found), None, None)
    assert plan().timeline.again == 0


def test_impossible_figures_of_cost_analysis_are_rejected():
    found = " ".join(plan().rejected)
    assert "times too few" in found and "optimal_seconds -33.9" in found
    flops = {"flops": plan().compiled_flops, "optimal_seconds": 1.0}
    assert plan(cost_analysis=flops).rejected == []


@pytest.mark.parametrize(
    ("text", "needed", "there"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in"
            " memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by"
            " 4.75G.",
            20.5,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required"
            " for HLO temporaries (264.94G) exceeds available HBM (15.75G).",
            267.94,  # and the arguments
            15.75,
        ),
    ],
)
def test_a_refusal_says_how_much_too_large(text, needed, there):
    found = plan(exhausted=text)
    assert not found.fits
    assert found.needed / GIB == pytest.approx(needed, abs=0.01)
    assert found.capacity / GIB == pytest.approx(there)
    shown = as_text(Outcome(found), None, None)
    assert f"{needed - there:.2f} GiB too much" in shown
    assert found.to_dict()["fits"] is False


def test_words_that_nobody_knows_are_shown():
    assert read_refusal("RESOURCE_EXHAUSTED: other words") is None
    text = as_text(
        Outcome(plan(exhausted="RESOURCE_EXHAUSTED: other words")), None, None
    )
    assert "other words" in text


def test_the_text_has_every_section_and_json_can_be_read():
    found = Outcome(plan())
    text = as_text(found, 2e12, 4.2)
    for words in (
        "fits: 6.00 GiB of 95.74 GiB",
        "the compiler's peak: 6.00 GiB <- compared with the chip",
        "outputs - aliased: 8.00 GiB\n",
        "kept for each turn of a scan",
        "no collectives",
        "predicted step",
        "libtpu 0.0.42.1",
        "(ring)",
        "at 4.2 for a chip and an hour",
    ):
        assert words in text
    read = json.loads(json.dumps(found.to_dict(2e12, 4.2)))
    wanted = "fits bytes_per_device capacity_bytes step_seconds mfu tokens_per_second"
    assert {*wanted.split(), "collectives", "days", "cost"} <= set(read)


def test_a_search_shows_the_best_first_and_its_overrides():
    best = Trial(("--config.train.accumulation=2",), plan())
    refused = Trial(("--config.mesh.tensor=3",), None, "does not divide")
    found = Outcome(plan(), best.overrides, [best, refused], searched=True)
    text = as_text(found, None, None)
    assert text.endswith("best: --config.train.accumulation=2")
    assert "refused: does not divide" in text
    assert found.to_dict(None, None)["overrides"] == ["--config.train.accumulation=2"]
