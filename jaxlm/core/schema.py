"""Typed configs: declaring a field, checking values against it, comparing configs.

A config is a frozen dataclass whose fields are declared with ``field``; sections are
fields that hold another such dataclass. A key is the dotted path of a field, such as
``train.batch_size``; messages write it as ``config.train.batch_size``.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import numbers
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from jaxlm.core.errors import UserError

T = TypeVar("T")


class ConfigError(UserError):
    """A config value that cannot be used; ``key`` says which, without ``config.``."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"config{'.' if key else ''}{key}: {problem}")
        self.key = key


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a field is for, and which values of its type are allowed."""

    help: str = ""
    choices: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None

    def allows(self, value: Any) -> bool:
        """Whether a value of the right type is in range and among the choices.

        So must be each item of a list, and a list of choices has none twice.
        """
        if value is None:
            return True
        if isinstance(value, tuple):
            once = self.choices is None or len(set(value)) == len(value)
            return once and all(self.allows(item) for item in value)
        return (
            (self.choices is None or value in self.choices)
            and (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def describe(self, annotation: Any) -> str:
        """What is allowed, for a message: ``a whole number, at least 1``."""
        if self.choices is not None:
            several = tuple[str, ...] in _members(annotation)
            names = ", ".join(map(str, self.choices))
            names += ", each at most once" if several else ""
            kinds = [("a list of " if several else "one of ") + names]
        else:
            kinds = [
                _NAMES.get(kind, "a list of records") for kind in _members(annotation)
            ]
        limits = [
            f", {word} {limit:.12g}"
            for word, limit in (
                ("at least", self.minimum),
                ("above", self.above),
                ("at most", self.maximum),
                ("below", self.below),
            )
            if limit is not None
        ]
        none = [", or none"] if type(None) in _members(annotation) else []
        return "".join([" or ".join(kind for kind in kinds if kind), *limits, *none])


def field(
    default: T,
    help: str,
    *,
    choices: tuple[Any, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> T:
    """Declare a config field; ``minimum`` and ``maximum`` are themselves allowed."""
    rule = Rule(help, choices, minimum, maximum, above, below)
    return typing.cast(T, dataclasses.field(default=default, metadata={"rule": rule}))


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One field that holds a value rather than a section."""

    key: str
    annotation: Any
    default: Any
    rule: Rule


@functools.cache
def leaves(cls: type) -> dict[str, Leaf]:
    """Every value of a config class by its key, in the order of declaration."""
    found: dict[str, Leaf] = {}
    for item in dataclasses.fields(cls):
        annotation = _hints(cls)[item.name]
        if dataclasses.is_dataclass(annotation):
            for key, leaf in leaves(typing.cast(type, annotation)).items():
                key = f"{item.name}.{key}"
                found[key] = dataclasses.replace(leaf, key=key)
        else:
            rule = item.metadata.get("rule", Rule())
            found[item.name] = Leaf(item.name, annotation, item.default, rule)
    return found


@functools.cache
def sections(cls: type, prefix: str = "") -> dict[str, type]:
    """Every section of a config class by its key; the class itself is ``""``."""
    found = {prefix: cls}
    for name, kind in _hints(cls).items():
        if dataclasses.is_dataclass(kind):
            key = f"{prefix}.{name}" if prefix else name
            found |= sections(typing.cast(type, kind), key)
    return found


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """A checked config from nested values; what is not given keeps its default.

    Raises:
        ConfigError: an unknown key, a wrong type, a value that is not allowed.
    """
    return _build(cls, values, "", cls)


def _build(cls: Any, values: Any, prefix: str, root: type) -> Any:
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise ConfigError(
            prefix, f"{show(values)} is not allowed; a section with {_names(cls)}"
        )
    hints = _hints(cls)
    for name in values:
        if name not in hints:
            raise unknown_key(root, f"{prefix}.{name}" if prefix else str(name))
    built = {}
    for item in dataclasses.fields(cls):
        if item.name not in values:
            continue
        key = f"{prefix}.{item.name}" if prefix else item.name
        annotation, value = hints[item.name], values[item.name]
        if dataclasses.is_dataclass(annotation):
            built[item.name] = _build(annotation, value, key, root)
        else:
            built[item.name] = check(leaves(root)[key], value)
    return cls(**built)


def check(leaf: Leaf, value: Any) -> Any:
    """``value`` as the type of a leaf, or a ConfigError that says what is allowed."""
    try:
        converted = _convert(value, leaf.annotation)
        if leaf.rule.allows(converted):
            return converted
    except UnicodeEncodeError:
        problem = f"{show(value)} is not allowed; text that can be written as UTF-8"
        raise ConfigError(leaf.key, problem) from None
    except (TypeError, ValueError, OverflowError):
        pass
    raise refusal(leaf, value)


def refusal(leaf: Leaf, value: Any) -> ConfigError:
    """The error for a value that a leaf does not take."""
    choices = [str(choice) for choice in leaf.rule.choices or ()]
    items = value if isinstance(value, tuple | list) else str(value).split(",")
    wrong = [str(item) for item in items if str(item) not in choices]
    near = nearest(wrong[0], choices) if wrong else None
    hint = f"nearest: {near}; " if near else ""
    allowed = leaf.rule.describe(leaf.annotation)
    return ConfigError(leaf.key, f"{show(value)} is not allowed; {hint}{allowed}")


def unknown_key(root: type, key: str) -> ConfigError:
    """The error for a key that is not there, with the nearest one that is."""
    keys = list(sections(root)) + list(leaves(root))
    tails = {each.rpartition(".")[2] for each in keys}
    tail = nearest(key.rpartition(".")[2], tails)
    same_tail = [each for each in keys if each.rpartition(".")[2] == tail]
    near = nearest(key, same_tail, cutoff=0.0)
    hint = f"; nearest: config.{near}" if near else ""
    parent = key.rpartition(".")[0]
    while parent and parent not in sections(root):
        parent = parent.rpartition(".")[0]
    where = f"config.{parent}" if parent else "config"
    allowed = _names(sections(root)[parent])
    return ConfigError(key, f"no such key{hint}; {where} has {allowed}")


def missing_leaf(root: type, key: str) -> ConfigError:
    """The error for a key that holds no value: a section, or nothing."""
    if key in sections(root):
        inside = f"{key}." if key else ""
        first = next(each for each in leaves(root) if each.startswith(inside))
        return ConfigError(key, f"is a section; set a key in it: config.{first}")
    return unknown_key(root, key)


def nearest(word: str, allowed: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The allowed word that ``word`` was most likely meant to be."""
    matches = difflib.get_close_matches(word, list(allowed), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def show(value: Any) -> str:
    """A value in a message, on one line and not longer than a screen is wide."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def flatten(instance: Any, prefix: str = "") -> dict[str, Any]:
    """Every value of a config by its key."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(instance):
        key, value = prefix + item.name, getattr(instance, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = value
    return flat


def flatten_dict(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value of a nested dict by its key; the opposite of ``nest``."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and set(value) != {"records", "sha256"}:
            flat |= flatten_dict(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Sections from keys: ``{"a.b": 3}`` becomes ``{"a": {"b": 3}}``."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        node = nested
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return nested


def to_dict(instance: Any) -> dict[str, Any]:
    """A config as JSON takes it; records in memory become their count and digest."""
    return nest({key: _plain(value) for key, value in flatten(instance).items()})


def difference(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """What changed between two results of ``to_dict``: key, old and new value.

    A key that only one of them has counts as ``None`` in the other.
    """
    before, after = flatten_dict(old), flatten_dict(new)
    return [
        (key, before.get(key), after.get(key))
        for key in before | after
        if before.get(key) != after.get(key)
    ]


def parse_text(text: str, annotation: Any) -> Any:
    """A value written on a command line, as the annotation's type.

    Raises:
        ValueError: the text does not spell a value of that type.
    """
    members = _members(annotation)
    if type(None) in members and text.lower() == "none":
        return None
    kind = next(member for member in members if member is not type(None))
    if kind is bool:
        if text.lower() not in _TRUTH:
            raise ValueError(text)
        return _TRUTH[text.lower()]
    if kind is int:
        return _whole(text)
    if kind is float:
        return float(text)
    if kind == tuple[str, ...]:
        parts = tuple(part.strip() for part in text.split(",")) if text else ()
        if not all(parts):
            raise ValueError(text)
        return parts
    return text


_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    tuple[str, ...]: "a list of strings",
    type(None): "",
}
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def _members(annotation: Any) -> tuple[Any, ...]:
    if isinstance(annotation, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _names(cls: Any) -> str:
    return ", ".join(item.name for item in dataclasses.fields(cls))


def _convert(value: Any, annotation: Any) -> Any:
    for kind in _members(annotation):
        if kind is type(None) and value is None:
            return None
        if kind is bool and isinstance(value, bool):
            return value
        if kind is str and isinstance(value, str):
            value.encode()
            return value
        if isinstance(value, bool):
            continue
        if kind is int and isinstance(value, numbers.Integral):
            return int(value)
        if kind is float and isinstance(value, numbers.Real):
            if math.isfinite(value):
                return float(value)
        if typing.get_origin(kind) in (tuple, Sequence) and isinstance(value, Sequence):
            if isinstance(value, str | bytes):
                continue
            item = typing.get_args(kind)[0]
            wanted = str if item is str else Mapping
            if all(isinstance(each, wanted) for each in value):
                "".join(each for each in value if isinstance(each, str)).encode()
                return tuple(value)
    raise TypeError(f"{value!r} is not {annotation}")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)  # 1e4 is a whole number too
        if not number.is_integer():
            raise
        return int(number)


def _plain(value: Any) -> Any:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    if not value or isinstance(value[0], str):
        return list(value)
    digest = hashlib.sha256()
    for record in value:
        digest.update(json.dumps(record, sort_keys=True, default=str).encode() + b"\n")
    return {"records": len(value), "sha256": digest.hexdigest()}
