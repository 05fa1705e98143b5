"""Entity labels: many schemes are read, one (IOB2) is kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from jaxlm.core.errors import UserError

PREFIXES = {"iob1": "BI", "iob2": "BI", "io": "I", "bioes": "BIESLUM"}
"""The prefixes of each scheme; bioes in its BILOU and BMES spellings too."""

_BIOES = {"L": "E", "U": "S", "M": "I"}
_PREFIXED = re.compile("[BIESLUM]-")
_OTHERWISE = re.compile("([BI])[_:/.](.+)|(.+)[-_:/.]([BI])")
"""Prefixes in other spellings: ``B_PER``, ``PER-B``."""
_Tag = tuple[str, str]  # (one of O, B, I, E, S; the entity's type)


def normalise(
    labels: Sequence[Sequence[str]],
    scheme: str = "auto",
    sources: Sequence[str] = (),
) -> list[list[str]]:
    """Rewrite the labels of a whole data set as IOB2.

    ``scheme`` is a key of `PREFIXES`, or ``auto``, which allows the prefixes of all of
    them: one reading fits every scheme, and is also that of a sequence that its scheme
    does not allow. Of B and I it is that of conlleval and seqeval (see `spans`), of E
    and S seqeval's: conlleval knows no S. Types without a prefix (``PER``) are IO, in
    which neighbours of one type are one entity; prefixes without a type (``B``, ``I``)
    get the type ``_``. ``sources[i]`` names sentence i in messages.

    Raises:
        UserError: a label that the scheme does not know, with its sentence.
    """
    if scheme != "auto" and scheme not in PREFIXES:
        raise UserError(
            f"config.data.scheme={scheme!r} is not known; use one of auto, "
            + ", ".join(PREFIXES)
        )
    tags, problem = _vocabulary(labels, scheme)
    if problem:
        label, reason = problem
        index = next(i for i, sentence in enumerate(labels) if label in sentence)
        where = sources[index] if index < len(sources) else f"sentence {index}"
        raise UserError(f"{where}: label {label!r} {reason}")
    return [_iob2([tags[label] for label in sentence]) for sentence in labels]


def spans(labels: Iterable[str]) -> list[tuple[str, int, int]]:
    """List the entities of one IOB2 sentence as (type, start, stop).

    Like conlleval and seqeval's default, an I-X after O or after another type starts
    an entity.
    """
    parts = (label.partition("-") for label in labels)
    return _entities((prefix, kind) for prefix, _, kind in parts)


def _entities(tags: Iterable[_Tag]) -> list[tuple[str, int, int]]:
    found: list[tuple[str, int, int]] = []
    start, is_open = 0, False
    before = ""
    place = -1
    for place, (prefix, kind) in enumerate(tags):
        if is_open and not (prefix in "IE" and kind == before):
            found.append((before, start, place))
            is_open = False
        if prefix != "O" and not is_open:
            start, is_open, before = place, True, kind
        if prefix in "ES":
            found.append((kind, start, place + 1))
            is_open = False
    if is_open:
        found.append((before, start, place + 1))
    return found


def _iob2(tags: Sequence[_Tag]) -> list[str]:
    labels = ["O"] * len(tags)
    for kind, start, stop in _entities(tags):
        labels[start] = f"B-{kind}"
        labels[start + 1 : stop] = [f"I-{kind}"] * (stop - start - 1)
    return labels


def _vocabulary(
    labels: Sequence[Sequence[str]], scheme: str
) -> tuple[Mapping[str, _Tag], tuple[str, str] | None]:
    """Give every distinct label its tag, and the first label that has none and why."""
    # A dict keeps the order of appearance: the first bad label is the one reported.
    names = dict.fromkeys(label for sentence in labels for label in sentence)
    names.pop("O", None)
    # S may be a type's name, unless the scheme is told.
    prefixes = set("I" if scheme == "io" else PREFIXES["bioes"])
    sure = set("BI") if scheme == "auto" else prefixes
    if any(_PREFIXED.match(name) for name in names):
        read = _read_prefixed
    elif sure & set(names) and set(names) <= prefixes:
        read = _read_typeless
    else:
        read = _read_bare
    tags: dict[str, _Tag] = {"O": ("O", "")}
    for name in names:
        tag = read(name, scheme)
        if isinstance(tag, str):
            return tags, (name, tag)
        tags[name] = tag
    return tags, None


def _read_prefixed(name: str, scheme: str) -> _Tag | str:
    allowed = PREFIXES.get(scheme, PREFIXES["bioes"])
    prefix, dash, kind = name.partition("-")
    if len(prefix) != 1 or prefix not in allowed or not dash:
        written = "/".join(f"{letter}-" for letter in allowed)
        return (
            f"does not start with {written} as other labels do; mend it, or name the"
            " labels' scheme with --config.data.scheme"
        )
    if not kind:
        return "names no entity type after its prefix"
    return _BIOES.get(prefix, prefix), kind


def _read_typeless(name: str, scheme: str) -> _Tag | str:
    return _read_prefixed(f"{name}-_", scheme)


def _read_bare(name: str, scheme: str) -> _Tag | str:
    if scheme not in ("auto", "io"):
        return (
            f"has no prefix, which config.data.scheme={scheme} needs; use io for bare"
            " types"
        )
    if not name:
        return "is empty; a token outside every entity is labelled O"
    if scheme == "auto" and (marks := re.search(r"""["'\[\]{}<>,;]""", name)):
        return (
            f"holds {marks[0]!r}; is the file of another format? (if it is a type's"
            " name, set --config.data.scheme=io)"
        )
    if name.isdigit():
        return "is a number; entity labels are names, such as B-PER, I-PER and O"
    if scheme == "auto" and re.match(r"\w-", name):
        return (
            f"has the unknown prefix {name[:2]!r}; known are B- I- E- S- L- U- M-"
            " (if it is a type's name, set --config.data.scheme=io)"
        )
    if scheme == "auto" and (found := _OTHERWISE.fullmatch(name)):
        kind, prefix = found[2] or found[3], found[1] or found[4]
        return (
            f"is not written as {prefix}-{kind}, as it needs to be (if it is a type's"
            " name, set --config.data.scheme=io)"
        )
    return "I", name
