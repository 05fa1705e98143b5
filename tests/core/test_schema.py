"""The typed config: what is accepted, and what is said of everything else."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from jaxlm.core import schema
from jaxlm.core.config import explain, parse_overrides, resolve
from jaxlm.core.errors import UserError
from jaxlm.core.schema import ConfigError, field
from jaxlm.experiment import ExperimentConfig
from jaxlm.experiment.config import MeshConfig


@dataclass(frozen=True)
class Inner:
    size: int = field(4, "how large", minimum=1, maximum=9)
    rate: float = field(0.5, "how fast", above=0.0, below=1.0)
    limit: float | None = field(None, "how far", minimum=0.0)
    kind: str = field("red", "which", choices=("red", "green"))
    kinds: tuple[str, ...] = field((), "some of them", choices=("red", "green"))


@dataclass(frozen=True)
class Outer:
    scan: bool = field(False, "whether")
    names: tuple[str, ...] = field((), "who")
    source: str | Sequence[dict[str, Any]] = field("a", "where from")
    inner: Inner = field(Inner(), "the inner part")


LEAVES = schema.leaves(ExperimentConfig)


def refused(values: dict[str, Any], cls: type = Outer) -> str:
    with pytest.raises(ConfigError) as caught:
        schema.build(cls, values)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_values_give_the_defaults():
    assert schema.build(Outer, {}) == Outer()


def test_values_reach_their_section_and_the_rest_keeps_its_default():
    assert schema.build(Outer, {"inner": {"size": 7}}) == Outer(inner=Inner(size=7))


def test_an_instance_is_accepted_as_a_section():
    assert schema.build(Outer, {"inner": Inner(size=2)}).inner.size == 2


def test_a_whole_number_is_accepted_as_a_float():
    limit = schema.build(Outer, {"inner": {"limit": 3}}).inner.limit
    assert limit == 3.0 and isinstance(limit, float)


def test_a_list_is_accepted_as_a_tuple():
    assert schema.build(Outer, {"names": ["a", "b"]}).names == ("a", "b")


def test_records_are_accepted_as_a_source():
    records = [{"id": "1", "text": "x"}]
    assert schema.build(Outer, {"source": records}).source == tuple(records)


def test_none_is_accepted_where_it_is_declared():
    assert schema.build(Outer, {"inner": {"limit": None}}).inner.limit is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"size": True}}, "config.inner.size: True is not allowed; a whole"),
        ({"inner": {"size": 2.0}}, "config.inner.size: 2.0 is not allowed"),
        ({"inner": {"size": "2"}}, "config.inner.size: '2' is not allowed"),
        ({"inner": {"size": None}}, "config.inner.size: None is not allowed"),
        ({"inner": {"rate": True}}, "config.inner.rate: True is not allowed"),
        ({"inner": {"rate": float("nan")}}, "config.inner.rate: nan is not allowed"),
        ({"inner": {"rate": float("inf")}}, "config.inner.rate: inf is not allowed"),
        ({"inner": {"limit": 10**400}}, "config.inner.limit: 1000"),
        ({"inner": 3}, "config.inner: 3 is not allowed; a section with size, rate"),
        ({"scan": 1}, "config.scan: 1 is not allowed; true or false"),
        ({"names": "abc"}, "config.names: 'abc' is not allowed; a list of strings"),
        ({"names": ["a", 3]}, "config.names: ['a', 3] is not allowed"),
        ({"source": 3}, "config.source: 3 is not allowed; a string or a list of rec"),
        ({"source": ["a"]}, "config.source: ['a'] is not allowed"),
    ],
)
def test_a_wrong_type_is_named_with_what_is_allowed(values: dict, message: str):
    assert refused(values).startswith(message)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("size", 0, "a whole number, at least 1, at most 9"),
        ("size", 10, "a whole number, at least 1, at most 9"),
        ("rate", 0.0, "a number, above 0, below 1"),
        ("rate", 1.0, "a number, above 0, below 1"),
        ("limit", -0.5, "a number, at least 0, or none"),
        ("kind", "blue", "one of red, green"),
        ("kind", "gren", "nearest: green; one of red, green"),
        ("kinds", ("blue",), "a list of red, green, each at most once"),
        ("kinds", ("red", "red"), "a list of red, green, each at most once"),
        (
            "kinds",
            ("red", "gren"),
            "nearest: green; a list of red, green, each at most once",
        ),
    ],
)
def test_a_value_out_of_range_is_told_the_range(name: str, value: Any, allowed: str):
    message = refused({"inner": {name: value}})
    assert message == f"config.inner.{name}: {value!r} is not allowed; {allowed}"


@pytest.mark.parametrize(("name", "value"), [("size", 1), ("size", 9), ("limit", 0)])
def test_minimum_and_maximum_are_themselves_allowed(name: str, value: int):
    assert getattr(schema.build(Outer, {"inner": {name: value}}).inner, name) == value


@pytest.mark.parametrize(
    ("values", "key", "near"),
    [
        ({"optimiser": {}}, "optimiser", "optimizer"),
        ({"train": {"batchsize": 3}}, "train.batchsize", "train.batch_size"),
        ({"learning_rate": 3}, "learning_rate", "optimizer.learning_rate"),
        ({"train": {"dropout": 3}}, "train.dropout", "model.dropout"),
    ],
)
def test_an_unknown_key_is_told_the_nearest_of_the_whole_tree(
    values: dict, key: str, near: str
):
    message = refused(values, ExperimentConfig)
    assert message.startswith(f"config.{key}: no such key; nearest: config.{near}; ")


def test_an_unknown_key_is_told_the_keys_of_its_section():
    assert refused({"inner": {"zzz": 1}}) == (
        "config.inner.zzz: no such key; config.inner has size, rate, limit, kind, kinds"
    )


def test_a_config_error_is_a_user_error_that_knows_its_key():
    with pytest.raises(UserError) as caught:
        schema.build(Outer, {"inner": {"size": 0}})
    assert typing.cast(ConfigError, caught.value).key == "inner.size"


def test_a_long_value_is_cut_in_the_message():
    assert len(refused({"inner": {"kind": "x" * 5000}})) < 200


def test_keys_come_in_the_order_of_declaration():
    assert list(schema.flatten(Outer())) == [
        "scan",
        "names",
        "source",
        "inner.size",
        "inner.rate",
        "inner.limit",
        "inner.kind",
        "inner.kinds",
    ]


def test_nest_and_flatten_are_opposites():
    nested = schema.to_dict(ExperimentConfig())
    assert schema.nest(schema.flatten_dict(nested)) == nested


def test_to_dict_survives_json_and_build():
    config = Outer(names=("a",), inner=Inner(limit=2.0))
    assert schema.build(Outer, json.loads(json.dumps(schema.to_dict(config)))) == config


def test_records_are_written_as_their_count_and_digest():
    source = schema.to_dict(schema.build(Outer, {"source": [{"id": "1"}]}))["source"]
    assert source["records"] == 1 and len(source["sha256"]) == 64


def test_records_given_to_the_constructor_as_a_list_are_written_alike():
    built = schema.build(Outer, {"source": [{"id": "1"}]})
    assert schema.to_dict(Outer(source=[{"id": "1"}])) == schema.to_dict(built)


def test_the_digest_of_records_tells_them_apart():
    first = schema.to_dict(Outer(source=({"id": "1"},)))
    second = schema.to_dict(Outer(source=({"id": "2"},)))
    assert [key for key, _, _ in schema.difference(first, second)] == ["source"]


def test_difference_names_the_key_and_both_values():
    old, new = schema.to_dict(Outer()), schema.to_dict(Outer(inner=Inner(size=7)))
    assert schema.difference(old, new) == [("inner.size", 4, 7)]


def test_difference_shows_a_key_that_only_one_has():
    assert schema.difference({"a": {"b": 1}}, {"a": {}}) == [("a.b", 1, None)]


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", int, 3),
        ("-3", int, -3),
        ("1e4", int, 10000),
        ("1e-5", float, 1e-5),
        ("3", float, 3.0),
        ("none", float | None, None),
        ("None", int | None, None),
        ("none", str, "none"),
        ("true", bool, True),
        ("False", bool, False),
        ("1", bool, True),
        ("0", bool, False),
        ("PER,LOC", tuple[str, ...], ("PER", "LOC")),
        ("PER, LOC", tuple[str, ...], ("PER", "LOC")),
        ("", tuple[str, ...], ()),
        ("", str, ""),
        ("a=b,c", str, "a=b,c"),
        ("data/x.conll", str | Sequence[dict[str, Any]], "data/x.conll"),
    ],
)
def test_text_becomes_a_value_of_the_annotation(text: str, annotation: Any, value: Any):
    parsed = schema.parse_text(text, annotation)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "annotation"),
    [
        ("x", int),
        ("3.5", int),
        ("inf", int),
        ("none", int),
        ("x", float),
        ("yes", bool),
        ("2", bool),
        ("PER,,LOC", tuple[str, ...]),
    ],
)
def test_text_that_spells_no_such_value_is_refused(text: str, annotation: Any):
    with pytest.raises(ValueError):
        schema.parse_text(text, annotation)


@pytest.mark.parametrize("key", LEAVES)
def test_every_value_of_the_experiment_has_help(key: str):
    help = LEAVES[key].rule.help
    assert len(help) > 5 and "\n" not in help


def test_every_section_of_the_experiment_has_help():
    for item in dataclasses.fields(ExperimentConfig):
        assert item.metadata["rule"].help


@pytest.mark.parametrize("key", LEAVES)
@pytest.mark.parametrize("value", [object(), {"a": 1}, b"x", [1], [None]])
def test_every_value_of_the_experiment_refuses_a_wrong_type(key: str, value: Any):
    message = refused(schema.nest({key: value}), ExperimentConfig)
    assert message.startswith(f"config.{key}: ")


@pytest.mark.parametrize("key", LEAVES)
def test_every_default_of_the_experiment_is_itself_allowed(key: str):
    leaf = LEAVES[key]
    assert schema.check(leaf, leaf.default) == leaf.default


@pytest.mark.parametrize("key", LEAVES)
def test_every_value_of_the_experiment_can_be_written_as_text(key: str):
    leaf = LEAVES[key]
    default = leaf.default
    text = ",".join(default) if isinstance(default, tuple) else str(default)
    assert schema.parse_text(text, leaf.annotation) == default


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"data": {"max_length": 16, "stride": 14}},
            "config.data.stride: 14 is not allowed; at most 13, below"
            " config.data.max_length - 2 (max_length is 16)",
        ),
        (
            {"train": {"batch_size": 16, "accumulation": 3}},
            "config.train.accumulation: 3 is not allowed; a divisor of"
            " config.train.batch_size, which is 16",
        ),
        (
            {"mesh": {"fsdp": -1}},
            "config.mesh.fsdp: -1 is not allowed; config.mesh.data takes the rest"
            " already",
        ),
        (
            {"mesh": {"tensor": 0}},
            "config.mesh.tensor: 0 is not allowed; a number of devices, or -1",
        ),
        (
            {"evaluate": {"metric": "-"}},
            "config.evaluate.metric: '-' is not allowed; auto or the name of a metric",
        ),
        (
            {"task": {"labels": ["PER", "PER"]}},
            "config.task.labels: ('PER', 'PER') is not allowed; every label once, none"
            " of them empty",
        ),
    ],
)
def test_values_that_cannot_go_together_are_refused(values: dict, message: str):
    assert refused(values, ExperimentConfig) == message


@pytest.mark.parametrize(
    "values",
    [
        {"data": {"max_length": 16, "stride": 13}},
        {"data": {"max_length": 16, "overflow": "truncate"}},
        {"mesh": {"data": 2, "fsdp": -1}},
        {"evaluate": {"metric": "-loss"}},
    ],
)
def test_values_that_just_go_together_are_allowed(values: dict):
    schema.build(ExperimentConfig, values)


RULE = "a list of data, fsdp, tensor, context, each at most once"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fsdp,tensr", f"('fsdp', 'tensr') is not allowed; nearest: tensor; {RULE}"),
        ("fsdp,fsdp", f"('fsdp', 'fsdp') is not allowed; {RULE}"),
        ("fsdp,,data", f"'fsdp,,data' is not allowed; {RULE}"),
    ],
)
def test_a_wrong_rule_on_the_command_line_is_told_the_mesh_axes(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_overrides(ExperimentConfig, [f"--config.mesh.rules.width={text}"])
    assert str(caught.value) == f"config.mesh.rules.width: {message}"


@pytest.mark.parametrize(
    ("text", "value"), [("fsdp,tensor", ("fsdp", "tensor")), ("", ())]
)
def test_a_rule_is_set_on_the_command_line(text, value):
    config = resolve(ExperimentConfig, None, [f"--config.mesh.rules.width={text}"])
    assert config.config.mesh.rules.width == value


def test_a_logical_axis_that_does_not_exist_is_told_the_nearest():
    message = refused({"mesh": {"rules": {"widht": ["fsdp"]}}}, ExperimentConfig)
    assert "nearest: config.mesh.rules.width; config.mesh.rules has batch," in message


def test_explain_shows_the_rules():
    lines = explain(resolve(ExperimentConfig, None, []), width=200).splitlines()
    start = lines.index("config.mesh.rules") + 1
    shown = {line.split()[0]: line.split()[1] for line in lines[start : start + 9]}
    assert shown["batch"] == "data,fsdp" and shown["layers"] == "()"
    assert RULE in lines[start]


def test_the_sizes_of_a_mesh_are_without_its_rules():
    assert MeshConfig(data=2).sizes == {"data": 2, "fsdp": 1, "tensor": 1, "context": 1}
