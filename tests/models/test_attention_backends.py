"""Which backend computes attention, and what is said of the choice."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from jaxlm.core.errors import UserError
from jaxlm.models.architecture import LayerKind, TransformerConfig
from jaxlm.models.backends import ABILITIES, Backend, Need, choose, sizes_of_heads
from jaxlm.models.config import ModelConfig

SIZES = dict(vocab_size=8, width=64, layers=2, heads=4, mlp_width=8, max_positions=16)
PAGE = Path(__file__).parents[2] / "docs" / "attention.md"
PLAIN = Need(platform="cpu", dtype="float32", head_size=16, causal=True)


def test_what_a_model_needs_is_read_off_its_architecture():
    config = TransformerConfig(
        **SIZES, pattern=(LayerKind(4), LayerKind()), score_cap=30.0, causal=True
    )
    found = Need.of(config, platform="gpu", dtype="bfloat16", split=True)
    wanted = Need("gpu", "bfloat16", 16, True, (4, None), split=True, cap=True)
    assert found == replace(wanted, dropout=True)


def test_xla_does_all_there_is_and_says_nothing():
    everything = replace(
        PLAIN, split=True, extra=True, relative=True, cap=True, dropout=True
    )
    for name in ("xla", "auto"):
        assert choose(name, replace(everything, split=False)).name == "xla"
    assert choose("xla", everything) == Backend("xla")
    assert choose("auto", PLAIN).notice == ""


def test_every_choice_of_the_config_is_a_backend():
    (field,) = (each for each in fields(ModelConfig) if each.name == "attention")
    assert field.metadata["rule"].choices == ("auto", *ABILITIES)


def test_a_tpu_has_splash_attention_and_falls_back_with_a_reason():
    tpu = replace(PLAIN, platform="tpu")
    found = choose("auto", tpu, 1024)
    assert (found.name, found.notice, found.block) == ("splash", "", 1024)
    found = choose("auto", replace(tpu, dropout=True))
    assert found.name == "xla"
    assert found.notice == (
        "attention by XLA: splash has no dropout of attention's weights"
        " (config.model.dropout=0 needs none)"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "splash runs on tpu alone, not cpu; take auto"),
        ({"extra": True}, "no bias by relative position"),
        ({"relative": True}, "no disentangled attention"),
        ({"split": True}, "needs whole rows, which the rule of sequence splits"),
    ],
)
def test_a_backend_that_was_named_and_cannot_is_refused(change, said):
    platform = "tpu" if change else "cpu"
    with pytest.raises(UserError, match=said) as raised:
        choose("splash", replace(PLAIN, platform=platform, **change))
    assert str(raised.value).startswith("config.model.attention: splash ")


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_rows_on_several_devices_have_ring_attention_everywhere(platform):
    split = replace(PLAIN, platform=platform, split=True, dropout=True, cap=True)
    assert choose("auto", split) == Backend("ring")
    found = choose("auto", replace(split, extra=True))
    assert found.name == "xla"
    assert found.notice == (
        "attention by XLA: ring has no bias by relative position; devices gather the"
        " keys and values of whole rows"
    )


GPU = replace(PLAIN, platform="gpu", dtype="bfloat16", capability=9.0)


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        ({"packing": False}, "cudnn", ""),
        ({"packing": False, "reaches": (128, None)}, "cudnn", ""),
        ({}, "cudnn", ""),
        ({"reaches": (128, None)}, "cudnn", ""),
        ({"capability": 8.0}, "triton", ""),
        ({"capability": 8.0, "packing": False}, "cudnn", ""),
        ({"dtype": "float32"}, "xla", "triton computes in bfloat16, not float32"),
        (
            {"capability": 8.0, "reaches": (128, None)},
            "xla",
            "cudnn has no segments before .*; triton has no lay",
        ),
        (
            {"packing": False, "reaches": (128,), "causal": False},
            "xla",
            "cudnn has no layers of a bounded reach but causal ones; triton has no la",
        ),
        ({"packing": False, "head_size": 100}, "triton", ""),
        ({"head_size": 256}, "xla", "triton has heads up to 128, not 256"),
        ({"cap": True}, "xla", "triton has no cap of the scores"),
    ],
)
def test_a_gpu_has_cudnn_and_triton_where_cudnn_lacks_segments(change, name, said):
    found = choose("auto", replace(GPU, **change))
    assert found.name == name
    assert re.search(said, found.notice) and bool(found.notice) == bool(said)


def row(name):
    """A backend's row of the table in the docs."""
    able = ABILITIES[name]

    def yes(it):
        return "yes" if it else "no"

    gathers = "gathered" if name == "xla" else "no"
    cells = [
        f"`{name}`",
        ", ".join(able.platforms).upper() or "all",
        ", ".join(able.dtypes),
        sizes_of_heads(able),
        "yes",
        f"at the end before {able.packing_since:g}" if able.packing_since else "yes",
        f"from {able.packing_since:g}" if able.packing_since else "yes",
        {"any": "yes", "none": "no"}.get(able.window, able.window),
        yes(able.extra),
        yes(able.relative),
        yes(able.cap),
        yes(able.dropout),
        "yes" if able.context else gathers,
        "yes",
    ]
    return f"| {' | '.join(cells)} |"


def test_the_table_of_the_docs_is_that_of_the_code():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("| backend | ru"))
    count = len(lines[first].split("|"))
    rows = lines[first + 2 : lines.index("", first)]
    assert rows == [row(name) for name in ABILITIES]
    assert {len(line.split("|")) for line in rows} == {count}


def test_the_page_explains_every_choice():
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"| `{name}` | " in text for name in ABILITIES)
    assert "| `auto` (default) | " in text
