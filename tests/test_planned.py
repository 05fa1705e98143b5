"""What a plan is told of a step before it is compiled."""

from types import SimpleNamespace

import pytest

from jaxlm.experiment.planned import attention_blocks
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
