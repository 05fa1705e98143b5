"""Generate text: prompts in, sequences out, from any decoder or encoder-decoder.

``generate(load(source), ["Once upon a time"])``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.models.beam import Beams, search, start_beams
from jaxlm.models.checkpoint import headless
from jaxlm.models.decoding import (
    Sequences,
    Start,
    begin,
    choose,
    decode,
    for_decoding,
    prefill,
)
from jaxlm.models.detokenizer import Detokenizer
from jaxlm.models.generation import Generated, Generation
from jaxlm.models.memory import check_memory
from jaxlm.models.pretrained import Pretrained
from jaxlm.models.prompts import Prompt, check_ids, encode
from jaxlm.models.sampling import Sampling
from jaxlm.models.stops import as_stops, settle
from jaxlm.models.watch import Stream, Watch

CHUNK = 8
"""Tokens between two looks of the host, where it streams or looks for stop strings."""
SLOTS = 64
"""The cache has a multiple of so many slots."""


def generate(
    model: Pretrained,
    prompts: Sequence[Prompt],
    generation: Generation | None = None,
    *,
    stream: Stream | None = None,
    **options: Any,
) -> list[list[Generated]]:
    """The sequences of each prompt; ``options`` are those of ``Generation``.

    A text is encoded with the special tokens that the tokenizer adds, a conversation by
    the chat template that it has, ready for an answer. ``stream(number,
    text)`` is called with each sequence's next piece of text, in the order of prompts
    and samples, while it is generated. One program is compiled for each bucket of
    shapes and kept with the model.

    Raises:
      UserError: an option or a prompt that is not allowed, or a model that cannot
        generate.
    """
    if generation is not None and options:
        raise UserError(
            f"{', '.join(options)}: beside a Generation, which has it; write"
            " dataclasses.replace(generation, ...)"
        )
    generation = generation or Generation(**options)
    return Generator.of(model).run(prompts, generation, stream)


class Generator:
    """A model ready to generate: its parameters turned for decoding, its programs."""

    def __init__(self, model: Pretrained):
        # Without the parameters as they were: whoever needs them has the model.
        self.model, self.config = replace(model, params={}), model.config
        if model.head is None:
            raise UserError(
                f"{headless(model.checkpoint)}, and cannot generate; take a causal"
                " language model, or an encoder-decoder"
            )
        if model.head != "language" or not (self.config.decoder or self.config).causal:
            raise UserError(
                f"{model.checkpoint.directory}: {model.checkpoint.family.model_type}"
                f" with the head {model.head} cannot generate; take a causal language"
                " model, or an encoder-decoder"
            )
        self.params = for_decoding(model.params)
        self.dtype = model.dtype

    @classmethod
    def of(cls, model: Pretrained) -> Generator:
        """The generator of a model, made once."""
        if "generator" not in model.kept:
            model.kept["generator"] = cls(model)
        return model.kept["generator"]

    def run(
        self,
        prompts: Sequence[Prompt],
        generation: Generation,
        stream: Stream | None = None,
        first: int = 0,
        names: Sequence[str] | None = None,
    ) -> list[list[Generated]]:
        """See ``generate``.

        ``first`` is the number of the first prompt among all; ``names`` is what errors
        call each.
        """
        if isinstance(prompts, str | Mapping):
            raise UserError("prompts: a list of them is needed; write [prompt] for one")
        if not prompts:
            return []
        names = names or [f"prompt {first + at}" for at in range(len(prompts))]
        if generation.stop or stream:
            _ = self.tokenizer  # said now where there is none
        special = self.detokenizer.special if self.detokenizer else {}
        generation = settle(generation, self.model, special)
        named = list(zip(prompts, names, strict=True))
        encoded = [encode(self.model, prompt, name) for prompt, name in named]
        for ids, name in zip(encoded, names, strict=True):
            check_ids(self.model, ids, generation.max_new_tokens, name)
        self.check(encoded, generation)
        if generation.beams > 1:
            if stream or generation.stop:
                raise UserError(
                    "beams: a search cannot stream nor look for stop strings; its"
                    " sequences are known at its end"
                )
            return self.beams(encoded, generation)
        return self.sequences(encoded, generation, stream, first)

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @cached_property
    def detokenizer(self) -> Detokenizer | None:
        """What gives the text of tokens; None without a tokenizer."""
        return Detokenizer(self.tokenizer) if self.model.has_tokenizer else None

    def check(self, prompts: list[list[int]], generation: Generation) -> None:
        """Refuse what the vocabulary or the memory cannot hold."""
        where, vocabulary = self.model.checkpoint.directory, self.config.vocab_size
        most = max(generation.stop_tokens or (), default=0)
        if most >= vocabulary:
            raise UserError(
                f"stop_tokens={most} is not allowed; the vocabulary of {where} has 0 to"
                f" {vocabulary - 1}"
            )
        # Of each beam twice as many continuations are looked at.
        if generation.beams > max(1, vocabulary // 2):
            raise UserError(
                f"beams={generation.beams} is not allowed; at most {vocabulary // 2},"
                f" half of the vocabulary of {where}"
            )
        rows, length = self.bucket(prompts, max(generation.samples, generation.beams))
        slots = self.slots(length, generation.max_new_tokens)
        read = length if self.config.decoder else 0
        check_memory(self.config, rows, slots + read, self.dtype)

    def bucket(self, prompts: list[list[int]], copies: int) -> tuple[int, int]:
        """Rows and tokens of a batch that prompts fit into, each ``copies`` times."""
        rows = 1 << (len(prompts) * copies - 1).bit_length()
        longest = max(16, max(map(len, prompts)))
        length = 1 << (longest - 1).bit_length()
        return rows, max(longest, min(length, self.config.max_positions))

    def start(self, prompts: list[list[int]], copies: int) -> tuple[Start, np.ndarray]:
        """Prompts in their bucket, each ``copies`` times, and which rows are idle."""
        wanted = len(prompts) * copies
        rows, length = self.bucket(prompts, copies)
        tokens = np.zeros((rows, length), np.int32)
        mask = np.zeros((rows, length), bool)
        for row in range(rows):
            ids = prompts[row // copies] if row < wanted else [0]
            tokens[row, length - len(ids) :] = ids
            mask[row, length - len(ids) :] = True
        first = self.model.start_token if self.config.decoder else 0
        idle = np.arange(rows) >= wanted
        return Start(jnp.asarray(tokens), jnp.asarray(mask), jnp.int32(first)), idle

    def slots(self, length: int, most: int) -> int:
        """Slots of a cache for a prompt's bucket and so many new tokens."""
        read = 1 if self.config.decoder else length
        return read + -(-most // SLOTS) * SLOTS

    def sampling(self, generation: Generation) -> Sampling:
        return Sampling(
            jnp.float32(generation.temperature or 1.0),
            jnp.int32(generation.top_k),
            jnp.float32(generation.top_p),
            jnp.float32(generation.min_p),
            jnp.float32(generation.repetition_penalty),
        )

    @cached_property
    def first(self) -> Callable[..., Sequences]:
        """The program that reads prompts and chooses their first token."""

        def first(
            params: Any, start: Start, keys: Any, idle: Any, sampling: Any,
            stops: Any, *, most: int, sample: bool, penalty: bool,
        ) -> Sequences:  # fmt: skip
            logits, cache, position, seen = self.read(params, start, most, penalty)
            state = begin(logits, cache, position, keys, seen, idle, most)
            return choose(state, logits, sampling, stops, sample)

        return jax.jit(first, static_argnames=("most", "sample", "penalty"))

    def read(self, params: Any, start: Start, most: int, penalty: bool) -> Any:
        """``prefill``, and which tokens a penalty is for."""
        slots = self.slots(start.tokens.shape[1], most)
        logits, cache, position = prefill(
            self.model.apply, self.config, params, start, slots, self.dtype
        )
        rows, vocabulary = logits.shape
        seen = jnp.zeros((rows, vocabulary if penalty else 0), bool)
        if penalty:
            tokens, mask = start.tokens, start.mask
            if self.config.decoder is not None:
                tokens = jnp.broadcast_to(start.start, (rows, 1))
                mask = jnp.ones((rows, 1), bool)
            row = jnp.arange(rows)[:, None]
            seen = seen.at[row, tokens].max(mask)
        return logits, cache, position, seen

    @cached_property
    def on(self) -> Callable[..., Sequences]:
        """The program that goes on, in the memory of the state it is given."""
        run = partial(decode, self.model.apply, self.config)
        return jax.jit(run, static_argnames=("sample",), donate_argnums=(1,))

    def sequences(
        self,
        prompts: list[list[int]],
        generation: Generation,
        stream: Stream | None,
        number: int,
    ) -> list[list[Generated]]:
        """Greedy or drawn sequences of each prompt."""
        copies, most = generation.samples, generation.max_new_tokens
        start, idle = self.start(prompts, copies)
        rows = len(idle)
        sample = generation.temperature > 0
        keys = _keys(generation.seed, number, rows, copies)
        sampling, stops = self.sampling(generation), as_stops(generation)
        state = self.first(
            self.params, start, keys, jnp.asarray(idle), sampling, stops,
            most=-(-most // SLOTS) * SLOTS, sample=sample,
            penalty=generation.repetition_penalty != 1.0,
        )  # fmt: skip
        number = len(prompts) * copies
        watch = Watch(
            self.detokenizer, number, generation.stop_tokens or (), generation.stop,
            stream,
        )  # fmt: skip
        looks = bool(generation.stop or stream)
        while True:
            count = int(state.count)
            if looks:
                ended = watch.look(np.asarray(state.tokens)[:, :count], count >= most)
                padded = np.concatenate([ended, idle[len(ended) :]])
                state = state._replace(done=state.done | jnp.asarray(padded))
            if count >= most or bool(state.done.all()):
                break
            until = min(most, count + CHUNK) if looks else most
            state = self.on(
                self.params, state, sampling, stops, jnp.int32(until), sample=sample
            )
        tokens = np.asarray(state.tokens)[:, :most]
        logprobs = np.asarray(state.logprobs)[:, :most]
        found = [
            watch.finished(row, tokens[row, :count], logprobs[row])
            for row in range(number)
        ]
        return [found[at : at + copies] for at in range(0, len(found), copies)]

    @cached_property
    def searched(self) -> Callable[..., Beams]:
        """The program of a beam search, from prompts to its end."""

        def searched(
            params: Any, start: Start, idle: Any, stops: Any, penalties: Any,
            limit: Any, *, most: int, beams: int, penalty: bool,
        ) -> Beams:  # fmt: skip
            logits, cache, position, seen = self.read(params, start, most, penalty)
            state = start_beams(logits, cache, position, seen, idle, beams, most)
            length, repetition = penalties
            return search(
                self.model.apply, self.config, params, state, stops, length,
                repetition, limit,
            )  # fmt: skip

        return jax.jit(searched, static_argnames=("most", "beams", "penalty"))

    def beams(
        self, prompts: list[list[int]], generation: Generation
    ) -> list[list[Generated]]:
        """The best sequences of each prompt by a beam search."""
        start, idle = self.start(prompts, 1)
        most = generation.max_new_tokens
        penalties = generation.length_penalty, generation.repetition_penalty
        state = self.searched(
            self.params, start, jnp.asarray(idle), as_stops(generation),
            tuple(map(jnp.float32, penalties)), jnp.int32(most),
            most=-(-most // SLOTS) * SLOTS, beams=generation.beams,
            penalty=generation.repetition_penalty != 1.0,
        )  # fmt: skip
        stops = generation.stop_tokens or ()
        tokens, lengths = np.asarray(state.finished), np.asarray(state.lengths)
        scores = np.asarray(state.scores)

        def one(row: int, beam: int) -> Generated:
            ids = tokens[row, beam, : lengths[row, beam]].tolist()
            finish = "stop" if ids and ids[-1] in stops else "length"
            text = self.detokenizer and self.detokenizer.text(ids)
            return Generated(ids, float(scores[row, beam]), finish, text)

        count = generation.samples
        return [
            [one(row, beam) for beam in range(count)] for row in range(len(prompts))
        ]


def _keys(seed: int, first: int, rows: int, copies: int) -> jax.Array:
    """A key for every row: by its prompt's number and its own among the samples."""
    key = jax.random.key(seed)

    def one(row: jax.Array) -> jax.Array:
        return jax.random.fold_in(
            jax.random.fold_in(key, first + row // copies), row % copies
        )

    return jax.vmap(one)(jnp.arange(rows))
