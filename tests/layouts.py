"""Small models of four families, trained over any layout of eight fake devices."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import trees
from jaxlm.core.mesh import Rules, make_mesh, replicated
from jaxlm.core.schema import flatten
from jaxlm.experiment.config import AXES, RulesConfig
from jaxlm.models.backends import Need, choose
from jaxlm.models.families import FAMILIES
from jaxlm.models.functional import functional
from jaxlm.models.heads import LanguageModel
from jaxlm.models.pretrained import make_backbone, unrolled
from jaxlm.tasks.losses import correct, cross_entropy
from jaxlm.train.config import OptimizerConfig
from jaxlm.train.objective import join
from jaxlm.train.optimizer import make_optimizer
from jaxlm.train.phases import make_phases, parse_phases
from jaxlm.train.state import States
from jaxlm.train.step import make_step

RULES = Rules.of(flatten(RulesConfig()))
ROWS, PLACES, VOCAB, LAYERS = 16, 32, 64, 6
COMMON = {"vocab_size": VOCAB, "initializer_range": 0.1}
LLAMA = {
    **COMMON,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": PLACES,
}
MODELS: dict[str, dict[str, Any]] = {
    "bert": {**LLAMA, "hidden_act": "gelu"},
    "gpt2": {**COMMON, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 32},
    "llama": {**LLAMA, "num_key_value_heads": 2, "hidden_act": "silu"},
    "t5": {
        "vocab_size": VOCAB,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": LAYERS,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "dropout_rate": 0.1,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "is_encoder_decoder": True,
    },
}
"""Their dropout is on, where the family has one: a mask must not hang on the layout."""


def layout(text: str) -> dict[str, int]:
    """``data=2,tensor=4`` as sizes of all axes."""
    given = dict(part.split("=") for part in text.split(","))
    return {axis: int(given.get(axis, 1)) for axis in AXES}


def batch(family: str, number: int) -> dict[str, np.ndarray]:
    """A step's batch: two segments a row, padding, labels that can be learned."""
    random = np.random.default_rng(number)
    place = np.arange(PLACES)[None]
    first = random.integers(8, 20, (ROWS, 1))
    last = random.integers(24, PLACES + 1, (ROWS, 1))
    segments = np.where(place < first, 1, np.where(place < last, 2, 0))
    positions = np.where(segments == 2, place - first, place) * (segments > 0)
    tokens = random.integers(4, VOCAB, (ROWS, PLACES))
    fields = {
        "tokens": tokens,
        "segments": segments,
        "positions": positions,
        "labels": np.where(segments > 0, (tokens * 7 + 3) % VOCAB, -1),
    }
    if family == "t5":
        fields["target_tokens"] = (tokens * 5 + 1) % VOCAB
        fields |= {f"target_{name}": fields[name] for name in ("segments", "positions")}
    made = {name: value.astype(np.int32) for name, value in fields.items()}
    return {**made, "mask": segments > 0}


@dataclass(frozen=True)
class Trained:
    """What came of a run: its losses, its scores at the end, its program."""

    losses: np.ndarray
    scores: dict[str, float]
    program: str


def train(
    family: str,
    sizes: dict[str, int],
    steps: int,
    *,
    scan: bool = True,
    remat: str = "none",
    accumulation: int = 1,
    dropout: bool = True,
) -> Trained:
    """Train a small model of a family on a mesh of these sizes."""
    mesh, _ = make_mesh(sizes)
    config = FAMILIES[family].to_config({"model_type": family, **MODELS[family]})
    config = config if scan else unrolled(config)

    options: dict[str, Any] = {"rules": RULES, "remat": remat}
    if family != "t5":
        split = sizes["context"] > 1
        need = Need.of(config, platform="cpu", dtype="float32", split=split)
        options["attention"] = choose("auto", need)

    def make(rngs):
        backbone = make_backbone(config, rngs, **options)
        return LanguageModel(backbone, rngs)

    def objective(trainable, frozen, batch, key, step):
        outputs = model.apply(join(trainable, frozen), batch, key if dropout else None)
        logits, labels = outputs["logits"], batch["labels"]
        weights = (labels >= 0).astype(jnp.float32)
        losses = {"lm": cross_entropy(logits, labels, weights)}
        return losses, {"accuracy": correct(logits, labels, weights)}

    model = functional(make)
    shardings = RULES.shardings(mesh, model.axes, model.shapes)
    whole = trees.flatten(model.shapes)
    phases = make_phases(parse_phases(()), whole, config.layers, (steps,))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), lambda step: 1e-3)
    states = States(optimizer, phases, model.shapes, shardings, replicated(mesh))
    step = jax.jit(make_step(objective, optimizer, accumulation), donate_argnums=0)
    rows = RULES.batch_sharding(mesh)

    def place(number):
        return jax.device_put(batch(family, number), rows)

    with jax.set_mesh(mesh):
        params = jax.jit(model.init, out_shardings=shardings)(jax.random.key(0))
        state, losses = states.new(params, seed=1), []
        program = step.lower(states.abstract(0), place(0)).compile()
        for number in range(steps):
            state, figures = program(state, place(number))
            losses.append(float(figures["loss"]))
        score = jax.jit(lambda params, batch: objective(params, {}, batch, None, 0))
        sums = jax.device_get(score(state.trainable, place(steps)))
    scores = {
        name: float(each.total / each.weight)
        for part in sums
        for name, each in part.items()
    }
    return Trained(np.array(losses), scores, program.as_text())
