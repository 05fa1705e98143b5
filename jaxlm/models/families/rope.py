"""Rotary positions as a config.json describes them: their base, and their scaling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.models.architecture import Rope
from jaxlm.models.families.base import optional, read

SCALINGS = ("default", "linear", "llama3", "longrope", "yarn")


def read_rope(
    hf: Mapping[str, Any],
    size: int,
    *,
    head_size: int = 0,
    theta: float = 10_000.0,
    layer_type: str | None = None,
) -> Rope:
    """The rotation of ``size`` dimensions of a head; of all of it without its size.

    ``theta`` is the base where config.json gives none.

    transformers 5 writes ``rope_parameters`` (one for each ``layer_type`` where these
    differ), its predecessors ``rope_theta`` and ``rope_scaling``.

    Raises:
      UserError: a scaling that we lack, or one whose numbers are missing.
    """
    if size < 2 or size + size % 2 > (head_size or size):
        raise UserError(
            f"config.json: {size} dimensions of a head of {head_size or size} would be"
            " rotated; they are rotated in pairs, at least one"
        )
    given, older = _objects(hf, layer_type)
    # As in transformers 5, an older key that is there too replaces the newer one.
    chosen = {**given, **older} if layer_type else older or given
    options = {"rope_theta": hf.get("rope_theta", theta), **chosen}
    length = hf.get("max_position_embeddings")
    if length is not None:
        options.setdefault("original_max_position_embeddings", length)
    if hf.get("original_max_position_embeddings") is not None:
        options |= {name: hf[name] for name in ["original_max_position_embeddings"]}
    kind = options.get("rope_type", options.get("type", "default"))
    if kind not in SCALINGS:
        raise UserError(
            f"config.json: rope_type={kind!r} is not supported; allowed:"
            f" {', '.join(SCALINGS)}"
        )
    base = read(options, "rope_theta", float, least=1.001, below=2**62)
    frequencies = 1.0 / base ** (np.arange(0, size, 2, dtype=np.float32) / size)
    magnitude = 1.0
    if kind == "linear":  # https://arxiv.org/abs/2306.15595
        frequencies = frequencies / read(options, "factor", float, least=1e-6)
    elif kind == "llama3":
        frequencies = _llama3(frequencies, options)
    elif kind == "longrope":
        frequencies, magnitude = _longrope(frequencies, options)
    elif kind == "yarn":
        frequencies, magnitude = _yarn(frequencies, base, hf, options)
    return Rope(tuple(np.asarray(frequencies, np.float32).tolist()), magnitude)


def _objects(
    hf: Mapping[str, Any], layer_type: str | None
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """``rope_parameters``, of a kind of layers where they differ; the older key."""
    given, older = hf.get("rope_parameters") or {}, hf.get("rope_scaling") or {}
    if isinstance(given, Mapping) and layer_type is not None:
        if given and layer_type not in given:
            raise UserError(
                f"config.json: rope_parameters={dict(given)!r} has no {layer_type}; an"
                " object for each kind of layers"
            )
        given = given.get(layer_type) or {}
    for name, value in (("rope_parameters", given), ("rope_scaling", older)):
        if not isinstance(value, Mapping):
            raise UserError(f"config.json: {name}={value!r} is not allowed; an object")
    return given, older


def _llama3(frequencies: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """Slow rotations slowed down by a factor, fast ones kept, and a ramp between.

    (Llama 3.1, arXiv:2407.21783, section 3.4; the numbers of its published code.)
    """
    factor = read(options, "factor", float, least=1e-6)
    low = read(options, "low_freq_factor", float)
    high = read(options, "high_freq_factor", float)
    if high <= low:
        raise UserError(
            f"config.json: high_freq_factor={high} is not allowed; it must be above"
            f" low_freq_factor={low}"
        )
    turns = frequencies * read(options, "original_max_position_embeddings", int)
    turns = turns / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - smooth) * frequencies / factor + smooth * frequencies


def _longrope(
    frequencies: np.ndarray, options: Mapping[str, Any]
) -> tuple[np.ndarray, float]:
    """A factor for each pair (arXiv:2402.13753), one for texts of any length."""
    factors = options.get("long_factor")
    count = len(frequencies)
    if not isinstance(factors, list) or len(factors) != count:
        raise UserError(
            f"config.json: long_factor must be a list of {count} numbers, one for each"
            " pair of a head's dimensions"
        )
    if options.get("short_factor") != factors:
        raise UserError(
            "config.json: rope_type='longrope' is supported where short_factor is"
            " long_factor; here texts of other lengths rotate otherwise"
        )
    checked = [read({"long_factor": each}, "long_factor", float) for each in factors]
    return frequencies / np.array(checked, np.float32), read(
        options, "attention_factor", float
    )


def _yarn(
    frequencies: np.ndarray,
    base: float,
    hf: Mapping[str, Any],
    options: Mapping[str, Any],
) -> tuple[np.ndarray, float]:
    """YaRN (Peng et al., 2023, arXiv:2309.00071, section 3.2 and equation 22)."""
    original = read(options, "original_max_position_embeddings", int, least=1)
    factor = options.get("factor")
    if factor is None:
        factor = read(hf, "max_position_embeddings", int) / original
    factor = read({"factor": factor}, "factor", float, least=1e-6)
    half = len(frequencies)

    def dimension(turns: float) -> float:
        return half * math.log(original / (turns * 2 * math.pi)) / math.log(base)

    number = partial(read, options, kind=float, least=1e-6)
    first = dimension(number("beta_fast", default=32))
    last = dimension(number("beta_slow", default=1))
    if options.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    ramp = (np.arange(half, dtype=np.float32) - first) / max(last - first, 0.001)
    ramp = np.clip(ramp, 0, 1)
    scaled = frequencies / factor * ramp + frequencies * (1 - ramp)

    def growth(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    magnitude = options.get("attention_factor")
    if magnitude is None:
        names = ("mscale", "mscale_all_dim")
        upper, lower = (optional(options, name, float) for name in names)
        magnitude = growth(upper) / growth(lower) if upper and lower else growth(1)
    return scaled, read({"attention_factor": magnitude}, "attention_factor", float)
