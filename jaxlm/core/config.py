"""Config files and command lines become one checked dataclass, and JSON in the workdir.

A value is set by the dataclass (its default), by a file of ``configs/`` and by
``--config.key=value``, the later over the earlier. ml_collections is known here alone.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import itertools
import linecache
import platform
import re
import shutil
import textwrap
import traceback
import types
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ml_collections import ConfigDict

from jaxlm.core import schema
from jaxlm.core.door import OVERRIDE
from jaxlm.core.errors import UserError
from jaxlm.core.files import atomic_write_json, read_json

T = TypeVar("T")

FILE = "config.json"
PACKAGES = ("jaxlm", "jax", "flax", "optax", "orbax-checkpoint", "transformers")


@dataclass(frozen=True)
class Resolved(Generic[T]):
    """A config and, for every key, ``default``, the config file or ``command line``."""

    config: T
    origin: dict[str, str]


def to_config_dict(cls: type) -> ConfigDict:
    """All defaults of a config class, for a file in ``configs/`` to change.

    Keys are locked. Types are not: ``schema.build`` checks them, and knows which may be
    None.
    """
    config = ConfigDict(schema.nest(schema.flatten(cls())), type_safe=False)
    config.lock()
    return config


def pick(variant: str, variants: Mapping[str, T]) -> T:
    """The entry of a variant of a config file; ``""`` is the file without a variant.

    Raises:
        UserError: no such variant.
    """
    if variant in variants:
        return variants[variant]
    near = schema.nearest(variant, filter(None, variants))
    hint = f"; nearest: {near}" if near else ""
    names = ", ".join(
        [*filter(None, variants), *(["or none"] if "" in variants else [])]
    )
    raise UserError(f"no such variant: {variant!r}{hint}; variants: {names}")


def load_file(spec: str, cls: type) -> ConfigDict:
    """What ``get_config`` of a config file returns; ``path.py`` or ``path.py:variant``.

    Raises:
        UserError: no such file or variant, or whatever goes wrong inside the file.
    """
    name, _, variant = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        raise UserError(f"--config={spec}: no such file{_near_files(path)}")
    module = types.ModuleType("config_file")
    module.__file__ = name
    linecache.checkcache(name)
    try:
        # Not an import: a stale .pyc of a file edited twice in a second would be run.
        exec(compile(path.read_bytes(), name, "exec"), module.__dict__)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise UserError("has no function get_config(variant)")
        takes_variant = bool(inspect.signature(get_config).parameters)
        if variant and not takes_variant:
            raise UserError(f"has no variants, so not {variant!r}")
        config = get_config(variant) if takes_variant else get_config()
        if not isinstance(config, ConfigDict):
            shown = schema.show(config)
            raise UserError(f"get_config must return the config; it returned {shown}")
        return config
    except (Exception, SystemExit) as error:  # the file may call sys.exit
        raise UserError(_failure(name, error, cls)) from error


def resolve(cls: type[T], spec: str | None, overrides: Iterable[str]) -> Resolved[T]:
    """The config of a run, checked once.

    ``spec`` is a config file (None: defaults alone); ``overrides`` are arguments like
    ``--config.train.steps=3``, ``--config.train.steps 3`` or ``--config.model.scan``.

    Raises:
        UserError: what is wrong with the file, a key or a value.
    """
    chosen = parse_overrides(cls, overrides)
    values = load_file(spec, cls).to_dict() if spec else {}
    defaults = schema.flatten(cls())
    written = schema.flatten_dict(values)
    origin = {}
    for key, default in defaults.items():
        changed = key in written and written[key] != default
        origin[key] = spec if spec and changed else "default"
    origin |= dict.fromkeys(chosen, "command line")
    try:
        config = schema.build(cls, _merge(values, schema.nest(chosen)))
    except schema.ConfigError as error:
        if origin.get(error.key, spec) == spec:
            raise UserError(f"{spec}: {error}") from error
        raise
    return Resolved(config, origin)


def parse_overrides(cls: type, overrides: Iterable[str]) -> dict[str, Any]:
    """Values by key from ``--config.key=value`` arguments, typed by the class."""
    leaves = schema.leaves(cls)
    values: dict[str, Any] = {}
    arguments = list(overrides)
    while arguments:
        flag, equals, text = arguments.pop(0).partition("=")
        key = flag.removeprefix(OVERRIDE)
        if key not in leaves:
            raise schema.missing_leaf(cls, key)
        leaf = leaves[key]
        if not equals:
            if arguments and not arguments[0].startswith("--"):
                text = arguments.pop(0)
            elif leaf.annotation is bool:
                text = "true"
            else:
                allowed = leaf.rule.describe(leaf.annotation)
                raise schema.ConfigError(key, f"needs a value; {allowed}")
        try:
            parsed = schema.parse_text(text, leaf.annotation)
        except ValueError:
            raise schema.refusal(leaf, text) from None
        values[key] = schema.check(leaf, parsed)
    return values


def explain(resolved: Resolved[Any], width: int | None = None) -> str:
    """Every key with its value, where that came from, and what it is for."""
    width = width or shutil.get_terminal_size().columns
    cls = type(resolved.config)
    values = schema.flatten(resolved.config)
    rows: dict[str, list[tuple[str, ...]]] = {}
    for key, leaf in schema.leaves(cls).items():
        section, _, name = key.rpartition(".")
        value = _explained(values[key])
        purpose = leaf.rule.help
        if leaf.rule != schema.Rule(purpose):  # something limits it
            purpose += f" [{leaf.rule.describe(leaf.annotation)}]"
        row = (name, value, _shorter(resolved.origin[key]), purpose)
        rows.setdefault(section, []).append(row)
    columns = list(zip(*itertools.chain(*rows.values()), strict=True))[:3]
    widths = [min(max(map(len, column)), 36) for column in columns]
    lines = [f"Set any key by {OVERRIDE}KEY=VALUE."]
    for section, members in rows.items():
        lines += ["", f"config.{section}" if section else "config"]
        for row in members:
            lines += _explain_row(row, widths, width)
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a run depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write(path: str | Path, config: Any, versions: Mapping[str, str]) -> None:
    """Write a config as JSON, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    document = {"config": schema.to_dict(config), "versions": dict(versions)}
    try:
        atomic_write_json(path, document)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def read(path: str | Path, cls: type[T]) -> T:
    """The config that ``write`` wrote; a key that it lacks has its default.

    Data given as records in memory comes back as a source ``memory:...``, which cannot
    be opened.

    Raises:
        UserError: no such file, not such a file, or written by another version.
    """
    document = _document(path)
    flat = schema.flatten_dict(document["config"])
    for key, value in flat.items():
        if isinstance(value, Mapping):
            flat[key] = f"memory:{value['records']}-records-{str(value['sha256'])[:12]}"
    try:
        return schema.build(cls, schema.nest(flat))
    except schema.ConfigError as error:
        then, now = document["versions"].get("jaxlm"), versions()["jaxlm"]
        other = f" (written by jaxlm {then}, this is {now})" if then != now else ""
        raise UserError(f"{path}: {error}{other}") from error


def changes(workdir: str | Path, config: Any) -> list[tuple[str, Any, Any]]:
    """How a config differs from that of the run in ``workdir``: key, old and new value.

    Empty where the workdir holds no run yet.
    """
    path = Path(workdir) / FILE
    if not path.exists():
        return []
    # A key that the run's version did not know yet had, in effect, its default.
    defaults = schema.flatten_dict(schema.to_dict(type(config)()))
    old = defaults | schema.flatten_dict(_document(path)["config"])
    return schema.difference(old, schema.to_dict(config))


def refuse_difference(
    workdir: str | Path, config: Any, allowed: Collection[str] = ()
) -> list[str]:
    """The keys, all of them allowed to, that differ from the run in ``workdir``.

    ``allowed`` holds keys (``train.epochs``) or sections (``evaluate``).

    Raises:
        UserError: another key differs, so that resuming would mix two experiments.
    """
    found = changes(workdir, config)
    wrong = [
        f"config.{key} was {schema.show(old)}, now {schema.show(new)}"
        for key, old, new in found
        if key not in allowed and key.rpartition(".")[0] not in allowed
    ]
    if wrong:
        raise UserError(
            f"{workdir} holds a run with another config: {'; '.join(wrong)};"
            " name another --workdir, or --overwrite to start anew"
        )
    return [key for key, _, _ in found]


def _document(path: str | Path) -> dict[str, Any]:
    if not Path(path).exists():
        raise UserError(f"{path}: no such file; --workdir names the directory of a run")
    document = read_json(path)
    sections = ("config", "versions")
    if not isinstance(document, dict) or not all(
        isinstance(document.get(section), dict) for section in sections
    ):
        raise UserError(
            f"{path}: is not the config of a run, which has {' and '.join(sections)}"
        )
    return document


def _shorter(origin: str) -> str:
    """An origin that is a file, from where we stand; others as they are."""
    path = Path(origin)
    here = Path.cwd()
    inside = path.is_absolute() and path.is_relative_to(here)
    return str(path.relative_to(here)) if inside else origin


def _explained(value: Any) -> str:
    if isinstance(value, tuple | list):
        if value and not isinstance(value[0], str):
            return f"{len(value)} records"
        return ",".join(value) or "()"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value) or "''"


def _explain_row(row: tuple[str, ...], widths: list[int], width: int) -> list[str]:
    """One row of the table; the help stands beside it, or below on narrow screens."""
    left = sum(widths) + 2 * (len(widths) + 1)
    beside = width - left >= 32
    cells = [
        textwrap.wrap(cell, size) or [""]
        for cell, size in zip(row, widths, strict=False)
    ]
    purpose = textwrap.wrap(row[-1], max(width - (left if beside else 6), 20))
    if beside:
        cells, widths, below = [*cells, purpose], [*widths, 0], []
    else:
        below = [f"      {line}" for line in purpose]
    table = []
    for parts in itertools.zip_longest(*cells, fillvalue=""):
        padded = (part.ljust(size) for part, size in zip(parts, widths, strict=True))
        table.append(("  " + "  ".join(padded)).rstrip())
    return table + below


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        below = base.get(name, {})
        if isinstance(value, Mapping):
            # A section that the file made a plain value is left for build to refuse.
            merged[name] = _merge(below, value) if isinstance(below, Mapping) else below
        else:
            merged[name] = value
    return merged


def _near_files(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("configs")
    there = sorted(str(each) for each in folder.glob("*.py"))
    stems = {Path(each).stem: each for each in there}
    near = schema.nearest(path.stem, stems)
    return (f"; nearest: {stems[near]}" if near else "") + (
        f"; there are {', '.join(there)}" if there else f"; no *.py in {folder}"
    )


def _failure(name: str, error: BaseException, cls: type) -> str:
    """One line about an exception inside a config file."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == name]
    if isinstance(error, SyntaxError) and error.filename == name:
        lines.append(error.lineno)
    where = f"{name}:{lines[-1]}" if lines else name
    if isinstance(error, UserError):
        return f"{where}: {error}"
    if "ml_collections" in frames[-1].filename:
        # ml_collections: `Key "stepz" does not exist and ...`, or `'stepz'`
        missing = re.match(r"""\W*(?:Key ")?(\w+)""", str(error))
        if isinstance(error, AttributeError | KeyError) and missing and lines:
            source = linecache.getline(name, lines[-1] or 0)
            key = missing[1]
            dotted = re.search(rf"\w\.((?:\w+\.)*{key})\b", source)
            return f"{where}: {schema.unknown_key(cls, dotted[1] if dotted else key)}"
    if isinstance(error, SystemExit):
        return f"{where}: ends the process; it must return the config"
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    text = " ".join(message.split())
    return f"{where}: {type(error).__name__}: {text}"
