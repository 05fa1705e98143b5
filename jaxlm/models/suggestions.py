"""What a checkpoint suggests of how to generate, and a call does not follow."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from jaxlm.models.generation import Generation
from jaxlm.models.pretrained import Pretrained

OURS = {
    "max_new_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "num_beams": "beams",
    "num_return_sequences": "samples",
    "repetition_penalty": "repetition_penalty",
    "stop_strings": "stop",
}
"""Settings of generation_config.json, and which option of ours does the same."""
DRAWING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": None,
    "epsilon_cutoff": None,
    "eta_cutoff": None,
    "top_h": None,
}
"""Those that count where tokens are drawn: with ``do_sample``."""
SEARCHING = {
    "length_penalty": "length_penalty",
    "early_stopping": None,
    "num_beam_groups": None,
    "diversity_penalty": None,
}
"""Those that count where there are beams."""
LACKING = (
    "min_length", "min_new_tokens", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "bad_words_ids",
    "force_words_ids", "constraints", "forced_bos_token_id", "forced_eos_token_id",
    "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "guidance_scale",
    "exponential_decay_length_penalty", "penalty_alpha", "dola_layers",
    "watermarking_config", "token_healing", "max_time",
)  # fmt: skip
"""Those that change what is generated, and that we have nothing for."""
NEUTRAL: dict[str, Any] = {
    "num_beams": 1, "num_return_sequences": 1, "num_beam_groups": 1,
    "repetition_penalty": 1, "encoder_repetition_penalty": 1, "guidance_scale": 1,
    "length_penalty": 1, "temperature": 1, "top_p": 1, "typical_p": 1,
}  # fmt: skip
"""Values that change nothing, of those where that is not 0 or nothing."""


def passed_over(model: Pretrained, generation: Generation) -> list[str]:
    """Settings of the checkpoint that would change the result, one text for each.

    They are passed over: options are those of the call. What the call sets otherwise
    than by default is its own affair and not told.
    """
    names: dict[str, str | None] = dict(OURS)
    if model.setting("do_sample"):
        names |= {"do_sample": "temperature", **DRAWING}
    if (model.setting("num_beams") or 1) != 1:
        names |= SEARCHING
    names |= dict.fromkeys(LACKING)
    defaults = {each.name: each.default for each in fields(Generation)}
    found = []
    for name, option in names.items():
        value = model.setting(name)
        if not value or value == NEUTRAL.get(name):
            continue
        if option is None:
            found.append(f"{name}={_shown(value)} (which jaxlm has nothing for)")
        elif getattr(generation, option) == defaults[option]:
            found.append(f"{name}={_shown(value)} ({_flag(name, option, value)})")
    return found


def _flag(name: str, option: str, value: Any) -> str:
    """The flag that does what a setting says."""
    flag = "--" + option.replace("_", "-")
    if name in ("do_sample", "max_length", "stop_strings"):
        return flag  # with a value that is not the setting's
    return f"{flag}={value}"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
