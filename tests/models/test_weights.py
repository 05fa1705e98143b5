"""Weights that a config.json and a file do not agree about."""

import json

import numpy as np
import pytest

from jaxlm.core.errors import UserError
from jaxlm.core.safetensors import write
from jaxlm.core.trees import flatten
from jaxlm.models.pretrained import load
from jaxlm.models.weights import their_tensors
from tests.models.families import GPT2


@pytest.fixture
def tied(tmp_path):
    """A small GPT-2's folder, and ``save(kernel)``: its weights beside that kernel."""
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **GPT2}
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_layer": 1}))
    made = load(f"random:{tmp_path}")
    tensors = their_tensors(made.checkpoint, made.params, made.head)

    def save(change):
        kernel = tensors["wte.weight"] + np.float32(change)
        write(tmp_path / "model.safetensors", {**tensors, "lm_head.weight": kernel})
        return str(tmp_path)

    return save


def test_a_kernel_that_is_the_table_of_tokens_may_be_stored_twice(tied):
    assert "language/kernel" not in flatten(load(tied(0)).params)


def test_a_kernel_that_should_be_the_table_of_tokens_and_is_not_is_refused(tied):
    folder = tied(0.5)
    with pytest.raises(
        UserError, match="lm_head.weight differs from wte.weight, to wh"
    ):
        load(folder)


def test_a_kernel_of_its_own_is_read(tied, tmp_path):
    folder = tied(0.5)
    config = json.loads((tmp_path / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    params = flatten(load(folder).params)
    table = np.asarray(params["backbone/embeddings/tokens/embedding"])
    np.testing.assert_array_equal(params["language/kernel"], table + np.float32(0.5))
