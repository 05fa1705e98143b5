"""Which configs are tried."""

from __future__ import annotations

import pytest

from jaxlm.core.config import parse_overrides, resolve
from jaxlm.experiment.config import ExperimentConfig
from jaxlm.planning.candidates import (
    blocks,
    mesh_choices,
    microbatches,
    remedies,
    sizes_of,
    variants,
)
from jaxlm.planning.topology import parse_topology

FACTS = {  # of Llama 7B on 8 devices
    "tokens_per_step": 256 * 4096,
    "width": 4096,
    "mlp_width": 2 * 11008,
    "layers": 32,
    "outputs": 32000,
    "optimizer_bytes": 6.7e9,
    "parameter_bytes": 3.4e9,
    "mesh": {"data": 1, "fsdp": 8, "tensor": 1, "context": 1},
}


def config(*overrides: str):
    chosen = [f"--config.{each}" for each in overrides]
    return resolve(ExperimentConfig, None, chosen).config


def test_every_candidate_is_a_config():
    given = config("train.batch_size=256")
    for text in ("v5p:4x4x4", "h100:4x8", "v5e:16x16"):
        topology = parse_topology(text)
        found = variants(given, topology, FACTS, 80e9)
        assert found
        for each in [*found, *remedies(given, topology)]:
            parse_overrides(ExperimentConfig, each)
            config("train.batch_size=256", *(one[9:] for one in each))


def test_what_is_likely_too_large_is_not_compiled():
    topology = parse_topology("h100:8")
    given = config("train.batch_size=256")
    wide = variants(given, topology, FACTS, 1e15)[0]
    assert "--config.model.remat=none" in wide
    assert "--config.train.accumulation=1" in wide
    narrow = variants(given, topology, FACTS, 80e9)
    assert wide not in narrow
    # Where nothing seems to fit, what needs least is tried first all the same.
    none = variants(given, topology, FACTS, 1.0)
    assert len(none) >= len(narrow)
    assert "--config.train.accumulation=32" in none[0]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("h100:8", [(1, 8, 1), (8, 1, 1), (1, 4, 2), (1, 2, 4), (1, 1, 8)]),
        ("h100:4x8", [(1, 32, 1), (4, 8, 1), (32, 1, 1), (1, 16, 2)]),
        ("v5e:16x16", [(1, 256, 1), (16, 16, 1), (256, 1, 1), (1, 128, 2)]),
        ("v5p:4x4x4*2", [(1, 128, 1), (2, 64, 1), (128, 1, 1), (1, 64, 2)]),
        ("h100:1", [(1, 1, 1)]),
    ],
)
def test_meshes_split_rows_parameters_or_both(text, wanted):
    topology = parse_topology(text)
    found = [sizes_of(each, topology) for each in mesh_choices(topology)]
    sizes = [(each["data"], each["fsdp"], each["tensor"]) for each in found]
    assert sizes[: len(wanted)] == wanted


def test_a_state_that_each_device_has_whole_is_likely_too_large():
    given, topology = config("train.batch_size=256"), parse_topology("h100:8")
    alone = "--config.mesh.data=-1"
    assert any(alone in each for each in variants(given, topology, FACTS, 300e9))
    assert not any(alone in each for each in variants(given, topology, FACTS, 80e9))


def test_microbatches_divide_the_rows_of_each_device():
    given = config("train.batch_size=1024")
    assert microbatches(given, parse_topology("v5p:4x4x4")) == [1, 2, 4, 8, 16]
    assert microbatches(config("train.batch_size=4"), parse_topology("h100:8")) == [1]


def test_what_helps_leaves_out_what_is_so_already():
    topology = parse_topology("h100:8")
    given = config("train.batch_size=64", "model.remat=block")
    found = remedies(given, topology)
    more = ("remat=none", "remat=dots", "remat=block")
    assert not any(each.endswith(more) for change in found for each in change)
    fewest = ("--config.train.accumulation=8", "--config.train.rows_per_device=none")
    assert fewest in found


def test_blocks_are_tried_that_differ_and_are_not_small():
    sizes = {"128": 128, "256": 256, "512": 512, "1024": 1024, "2048": 2048}
    given = config("model.attention_block=1024")
    found = blocks(given, {"attention_blocks": sizes})
    names = [f"--config.model.attention_block={size}" for size in (512, 2048)]
    assert found == [(name,) for name in names]
    for each in found:
        parse_overrides(ExperimentConfig, each)


def test_blocks_that_come_to_the_same_are_tried_once():
    """Of 768 tokens, whose greatest part of at most 512 is 384."""
    sizes = {"128": 128, "256": 256, "512": 384, "1024": 768, "2048": 768}
    found = blocks(config(), {"attention_blocks": sizes})
    assert found == [("--config.model.attention_block=1024",)]


def test_no_block_is_tried_where_splash_does_not_compute_attention():
    assert blocks(config(), {"attention_blocks": {}}) == []
