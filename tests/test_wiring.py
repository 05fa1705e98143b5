"""From a config to objects: what a head begins as."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers

from jaxlm.core.errors import UserError
from jaxlm.core.mesh import make_mesh
from jaxlm.core.trees import BACKBONE, flatten
from jaxlm.experiment.parameters import new_params
from jaxlm.experiment.prepare import prepare
from jaxlm.experiment.wiring import make_parts
from jaxlm.models.checkpoint import BUILT_IN, open_checkpoint
from tests.small_runs import config, quietly


def new_heads(source, **changes):
    """The leaves of a head, by name: on loaded weights, and of a model all new."""
    made = config(model__pretrained=str(source), **changes)
    checkpoint = open_checkpoint(str(source))
    mesh = make_mesh(made.mesh.sizes)[0]
    parts = make_parts(made, mesh, checkpoint.directory, ("LOC", "PER"))
    with jax.set_mesh(mesh):
        loaded = new_params(parts, checkpoint)
        new = parts.model.init(jax.random.key(made.seed))
    del loaded[BACKBONE], new[BACKBONE]
    return flatten(loaded), flatten(new)


@pytest.mark.parametrize("changes", [{}, {"model__scan": True}, {"mesh__fsdp": 2}])
def test_a_head_on_loaded_weights_is_that_of_a_new_model(minilm, changes):
    loaded, new = new_heads(minilm, **{"mesh__data": 1} | changes)
    assert loaded.keys() == new.keys()
    for name in new:
        # The same bits of the key; another program may round what is made of them.
        np.testing.assert_allclose(loaded[name], new[name], rtol=1e-6, err_msg=name)


def test_another_seed_begins_with_another_head(minilm):
    one, other = (new_heads(minilm, mesh__data=1, seed=seed)[0] for seed in (0, 1))
    same = {name for name in one if np.array_equal(one[name], other[name])}
    assert same < set(one)
    assert all(name.endswith("bias") for name in same)


def test_a_run_may_have_more_tokens_than_its_checkpoint(tmp_path):
    folder = Path(shutil.copytree(BUILT_IN["tiny"], tmp_path / "model"))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save(str(folder / "tokenizer.json"))

    def made(**changes):
        given = config(model__pretrained=f"random:{folder}", mesh__data=1, **changes)
        mesh = make_mesh(given.mesh.sizes)[0]
        return make_parts(given, mesh, folder, ("LOC", "PER"))

    with pytest.raises(UserError, match="or config.model.vocab_size=2002 for new rows"):
        made()
    parts = made(model__vocab_size=2002, model__vocab_multiple=16)
    assert parts.transformer.vocab_size == parts.tokenizer.vocab_size == 2002
    table = flatten(parts.model.shapes)[f"{BACKBONE}/embeddings/tokens/embedding"]
    assert table.shape == (2016, 64)


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"mesh__data": 1}, "xla"), ({"mesh__data": 1, "mesh__context": 2}, "ring")],
)
def test_attention_is_chosen_by_the_mesh(changes, name):
    made = config(model__pretrained="random:tiny", **changes)
    parts = make_parts(
        made, make_mesh(made.mesh.sizes)[0], BUILT_IN["tiny"], ("LOC", "PER")
    )
    assert (parts.attention.name, parts.attention.notice) == (name, "")


def test_attention_that_this_machine_cannot_do_is_refused():
    made = config(
        model__pretrained="random:tiny", model__attention="splash", mesh__data=1
    )
    mesh = make_mesh(made.mesh.sizes)[0]
    with pytest.raises(UserError, match="config.model.attention: splash runs on tpu"):
        make_parts(made, mesh, BUILT_IN["tiny"], ("LOC", "PER"))


@pytest.mark.parametrize("packing", [True, False])
def test_a_row_that_devices_cannot_split_is_refused_with_the_numbers(packing):
    given = config(
        mesh__data=1, mesh__context=8, data__max_length=36, data__packing=packing
    )
    with pytest.raises(UserError) as caught:
        prepare(given, None, quietly)
    assert "config.mesh.context: 8 devices cannot split sequence=36 of a row" in str(
        caught.value
    )
