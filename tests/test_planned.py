"""What a plan is told of a step before it is compiled."""

from types import SimpleNamespace

import jax
import pytest

from jaxlm.core.mesh import make_mesh
from jaxlm.experiment.planned import attention_blocks, build
from jaxlm.models.backends import Backend
from tests.small_runs import config


@pytest.mark.parametrize(
    ("length", "blocks"),
    [
        (2048, [128, 256, 512, 1024, 2048]),
        (700, [128, 256, 384, 768, 768]),  # in 768, which multiples of 128 divide
        (64, [128] * 5),
    ],
)
def test_blocks_divide_the_rows_that_splash_pads(length, blocks):
    parts = SimpleNamespace(
        config=config(data__max_length=length), attention=Backend("splash")
    )
    assert list(attention_blocks(parts).values()) == blocks
    assert list(attention_blocks(parts)) == ["128", "256", "512", "1024", "2048"]


@pytest.mark.parametrize("name", ["xla", "cudnn", "triton", "ring"])
def test_other_attention_has_no_blocks(name):
    parts = SimpleNamespace(config=config(), attention=Backend(name))
    assert attention_blocks(parts) == {}


def test_rows_of_padding_are_no_tokens():
    mesh, _ = make_mesh({"data": -1, "fsdp": 1, "tensor": 1, "context": 1})
    chosen = config(train__batch_size=12, data__max_length=64)
    planned = build(chosen, mesh)
    assert planned.batch["tokens"].shape == (16, 64)
    assert planned.facts["tokens_per_step"] == 12 * 64
    assert any("4 rows of padding" in line for line in planned.facts["assumed"])
    whole = build(config(train__batch_size=16, data__max_length=64), mesh)
    assert not any("padding" in line for line in whole.facts["assumed"])


@pytest.mark.parametrize(
    ("phases", "shares"),
    [
        ("", (1.0, 1.0)),
        ("head@5steps,all", (0.0, 0.0)),
        ("head+layers[-1:]@5steps,all", (0.5, 0.5)),
        ("head+embeddings@5steps,all", (0.0, 1.0)),
    ],
)
def test_what_is_frozen_has_no_gradient_and_below_it_nothing_goes_back(phases, shares):
    mesh, _ = make_mesh({"data": -1, "fsdp": 1, "tensor": 1, "context": 1})
    given = {"train__phases": phases} if phases else {}
    planned = build(config(data__max_length=64, **given), mesh)
    facts = planned.facts
    trainable, reached = shares
    layers, attention = (facts[f"{n}_flops_per_token"] for n in ("layer", "attention"))
    wanted = (1 + reached + trainable) * layers + (1 + 2 * reached) * attention
    wanted += 3 * facts["head_flops_per_token"]
    assert facts["model_flops_per_token"] == pytest.approx(wanted)


def test_a_step_gives_back_a_state_that_lies_as_it_took_it():
    """Else the next step is compiled anew, and a restart sums in another order."""
    mesh, _ = make_mesh({"data": 2, "fsdp": 2, "tensor": 2, "context": 1})
    rules = {"width": "fsdp,tensor", "heads": "", "mlp": ""}
    given = {f"mesh__rules__{name}": axes for name, axes in rules.items()}
    planned = build(config(model__scan=True, data__max_length=64, **given), mesh)
    after, _ = planned.lower().compile().output_shardings
    leaves = jax.tree.leaves(planned.state), jax.tree.leaves(after)
    for before, found in zip(*leaves, strict=True):
        assert found.is_equivalent_to(before.sharding, len(before.shape))
