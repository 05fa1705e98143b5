"""Which configs are tried."""

from __future__ import annotations

from jaxlm.core.config import parse_overrides, resolve
from jaxlm.experiment.config import ExperimentConfig
from jaxlm.planning.candidates import microbatches, remedies, variants
from jaxlm.planning.topology import parse_topology


def config(*overrides: str):
    chosen = [f"--config.{each}" for each in overrides]
    return resolve(ExperimentConfig, None, chosen).config


def test_every_candidate_is_a_config():
    given = config("train.batch_size=256")
    for text in ("v5p:4x4x4", "h100:4x8", "v5e:16x16"):
        topology = parse_topology(text)
        for each in [*variants(given, topology), *remedies(given, topology)]:
            parse_overrides(ExperimentConfig, each)
            config("train.batch_size=256", *(one[9:] for one in each))


def test_the_config_as_it_is_comes_first():
    assert variants(config(), parse_topology("h100:8"))[0] == ()


def test_microbatches_divide_the_rows_of_each_device():
    given = config("train.batch_size=1024")
    assert microbatches(given, parse_topology("v5p:4x4x4")) == [1, 2, 4, 8, 16]
    assert microbatches(config("train.batch_size=4"), parse_topology("h100:8")) == [1]


def test_what_helps_leaves_out_what_is_so_already():
    topology = parse_topology("h100:8")
    given = config("train.batch_size=64", "model.remat=block")
    found = remedies(given, topology)
    assert not any("remat" in each for change in found for each in change)
    assert ("--config.train.accumulation=8",) in found
