"""What ends a sequence: tokens, and strings that are tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxlm.core.errors import UserError
from jaxlm.models.generation import Generation
from jaxlm.models.pretrained import Pretrained


def settle(
    generation: Generation, model: Pretrained, special: Mapping[str, int]
) -> Generation:
    """With all tokens that end a sequence; ``stop`` is left to look for in texts.

    Texts have no special tokens: a string that is one becomes a stop token.

    Raises:
      UserError: a stop string has a special token in it, and more.
    """
    tokens, strings = generation.stop_tokens, []
    tokens = list(own_stops(model) if tokens is None else tokens)
    for stop in generation.stop:
        if stop in special:
            tokens.append(special[stop])
            continue
        if held := [name for name in special if name in stop]:
            raise UserError(
                f"stop={stop!r} is not allowed: {held[0]} is a special token, of which"
                f" texts have none; stop at {held[0]!r} alone"
            )
        strings.append(stop)
    unique = tuple(dict.fromkeys(tokens))
    return replace(generation, stop_tokens=unique, stop=tuple(strings))


def own_stops(model: Pretrained) -> tuple[int, ...]:
    """The tokens that end a sequence, by generation_config.json or config.json."""
    known = range(model.config.vocab_size)  # no other is ever generated
    return tuple(each for each in model.tokens("eos_token_id") if each in known)


def as_stops(generation: Generation) -> jax.Array:
    """The tokens that end a sequence, i32[E]."""
    return jnp.asarray(generation.stop_tokens or (), jnp.int32)
