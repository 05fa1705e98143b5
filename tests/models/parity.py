"""One small model on both sides: the same examples to transformers and to ours.

The batch has what may differ: padding on the right, padding on the left, two examples
in one row. transformers is given every example in a row of its own.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.models.weights import their_tensors

# (row, first place, length) of every example, in rows of an odd length: longer than
# every window, bucket and table of distances of the cases.
LENGTH = 23
PLACES = ((0, 0, 19), (1, 6, 17), (2, 1, 11), (2, 13, 9))
TARGET_LENGTH = 21
TARGET_PLACES = ((0, 0, 17), (1, 8, 13), (2, 0, 9), (2, 11, 7))
KINDS = ("padded on the right", "padded on the left", "packed", "packed")


def error(ours, theirs):
    """The norm of the difference over that of theirs."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def build(torch, case, folder):
    """The model of a case, every parameter random, written to a folder."""
    import transformers

    kind = getattr(transformers, case.model)
    options = dict(case.config)
    config = kind.config_class(**options, attn_implementation="eager")
    torch.manual_seed(1)
    theirs = kind(config).eval()
    if case.config.get("tie_word_embeddings") is False and hasattr(theirs, "shared"):
        # transformers 5 makes every T5 with one table; published ones have two.
        apart = theirs.lm_head.weight.detach().clone()
        theirs.lm_head.weight = torch.nn.Parameter(apart)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    theirs.save_pretrained(folder)
    return theirs


@dataclass(frozen=True)
class Rows:
    """Random tokens and types of every example, in their places."""

    places: tuple[tuple[int, int, int], ...]
    length: int
    tokens: list[np.ndarray]
    types: list[np.ndarray]

    @classmethod
    def drawn(cls, places, length, least, most, seed):
        random = np.random.default_rng(seed)
        lengths = [count for _, _, count in places]
        tokens = [random.integers(least, most, count) for count in lengths]
        types = [random.integers(0, 2, count) for count in lengths]
        return cls(places, length, tokens, types)

    @cached_property
    def batch(self) -> dict[str, np.ndarray]:
        """Ours: rows of one or two segments."""
        rows = 1 + max(row for row, _, _ in self.places)
        names = ("tokens", "types", "segments", "positions")
        batch = {name: np.zeros((rows, self.length), np.int32) for name in names}
        batch["starts"] = np.zeros((rows, 2), np.int32)
        for number, (row, start, count) in enumerate(self.places):
            part = np.s_[row, start : start + count]
            place = self.place(number)
            batch["tokens"][part] = self.tokens[number]
            batch["types"][part] = self.types[number]
            batch["segments"][part] = place + 1
            batch["positions"][part] = np.arange(count)
            batch["starts"][row, place] = start
        batch["mask"] = batch["segments"] > 0
        return batch

    def place(self, number: int) -> int:
        """Which example of its row one is."""
        rows = [row for row, _, _ in self.places]
        return rows[:number].count(rows[number])

    def start(self, number: int, aligned: bool) -> int:
        """Where an example begins in transformers' row; a packed one at its head."""
        alone = [row for row, _, _ in self.places].count(self.places[number][0]) == 1
        return self.places[number][1] if alone and not aligned else 0

    def theirs(self, torch, aligned: bool) -> dict[str, Any]:
        """What transformers reads, an example a row; ``aligned``: padded on the right.

        Positions of padding are those of a first token, which count nowhere.
        """
        shape = (len(self.places), self.length)
        names = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
        fields = {name: np.zeros(shape, np.int64) for name in names}
        for number, (_, _, count) in enumerate(self.places):
            first = self.start(number, aligned)
            part = np.s_[number, first : first + count]
            fields["input_ids"][part] = self.tokens[number]
            fields["attention_mask"][part] = 1
            fields["token_type_ids"][part] = self.types[number]
            fields["position_ids"][part] = np.arange(count)
        return {name: torch.tensor(value) for name, value in fields.items()}

    def our_index(self, text: bool) -> tuple[np.ndarray, np.ndarray]:
        """(row, place) of every real position of ours, or of every example."""
        if text:
            pairs = [(row, self.place(n)) for n, (row, _, _) in enumerate(self.places)]
        else:
            pairs = [
                (row, start + offset)
                for row, start, count in self.places
                for offset in range(count)
            ]
        rows, columns = np.array(pairs).T
        return rows, columns

    def their_index(self, aligned: bool) -> tuple[np.ndarray, np.ndarray]:
        """(row, place) of every real position of theirs, in the same order."""
        pairs = [
            (number, self.start(number, aligned) + offset)
            for number, (_, _, count) in enumerate(self.places)
            for offset in range(count)
        ]
        rows, columns = np.array(pairs).T
        return rows, columns

    def kinds(self, text: bool) -> np.ndarray:
        """Which of ``KINDS`` each of those is."""
        counts = [1 if text else count for _, _, count in self.places]
        return np.repeat(KINDS, counts)


class Examples:
    """What both sides read of a model (``Pretrained``), and what is compared.

    transformers classifies an encoder's text by the first position, though it be
    padding, where ours takes the first real one: ``aligned`` gives it those examples
    padded on the right. Its decoders take the last token that is no padding, and means
    count the mask, on whichever side it is. DeBERTa and T5 know the distances between
    places alone, so that padding on the left moves nothing; all others are told the
    positions that ours have.
    """

    def __init__(self, model, least: int):
        config = model.config
        self.config, self.text = config, model.head == "text"
        self.aligned = self.text and config.pooling.reads == "first"
        drawn = {"least": least, "most": config.vocab_size}
        self.source = Rows.drawn(PLACES, LENGTH, **drawn, seed=0)
        self.read = self.source
        self.batch = dict(self.source.batch)
        if config.decoder is not None:
            self.read = Rows.drawn(TARGET_PLACES, TARGET_LENGTH, **drawn, seed=1)
            for name in ("tokens", "segments", "positions"):
                self.batch[f"target_{name}"] = self.read.batch[name]
        self.kinds = self.read.kinds(self.text)

    def labels(self, count: int) -> np.ndarray:
        return np.random.default_rng(2).integers(0, count, len(self.kinds))

    def theirs(self, torch, model) -> Any:
        """Logits of transformers' model, [N, L], over all that is real."""
        fields = self.source.theirs(torch, self.aligned)
        fields["position_ids"] += self.config.position_offset
        if not self.config.type_vocab_size:
            del fields["token_type_ids"]
        if self.config.decoder is not None:
            read = self.read.theirs(torch, False)
            fields["decoder_input_ids"] = read["input_ids"]
            fields["decoder_attention_mask"] = read["attention_mask"]
        known = inspect.signature(model.forward).parameters
        out = model(**{name: fields[name] for name in fields if name in known})
        if hasattr(out, "start_logits"):
            logits = torch.stack([out.start_logits, out.end_logits], -1)
        else:
            logits = getattr(out, "prediction_logits", None)
            logits = out.logits if logits is None else logits
        if not self.text:
            logits = logits[self.read.their_index(self.aligned)]
        if logits.ndim == 1:  # of two labels, the first of which has 0
            logits = torch.stack([torch.zeros_like(logits), logits], -1)
        return logits

    def ours(self, model, params) -> jax.Array:
        """Our logits of the same, in the same order."""
        logits = model.apply(params, self.batch)["logits"]
        logits = logits[self.read.our_index(self.text)]
        if logits.ndim == 1:
            logits = jnp.stack([jnp.zeros_like(logits), logits], -1)
        return logits


def their_gradients(torch, model, examples):
    """Their logits, and after it every parameter has its gradient of a summed loss."""
    logits = examples.theirs(torch, model)
    labels = torch.tensor(examples.labels(logits.shape[-1]))
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    return logits.detach().numpy()


def our_gradients(model, examples):
    """Our logits, and every gradient under transformers' name; one program."""

    def loss(params):
        logits = examples.ours(model, params)
        labels = examples.labels(logits.shape[-1])
        logs = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(logs, labels[:, None], 1).sum(), logits

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, logits), gradients = run(model.params)
    found = their_tensors(model.checkpoint, gradients, model.head)
    return np.asarray(logits), found
