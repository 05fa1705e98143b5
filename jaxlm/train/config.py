"""What a user may say about training, evaluation and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from jaxlm.core.schema import ConfigError, field
from jaxlm.train.phases import parse_phases


@dataclass(frozen=True)
class TrainConfig:
    """How long and in what portions."""

    epochs: int = field(5, "passes over the training data", minimum=1, maximum=100_000)
    steps: int | None = field(
        None,
        "optimizer steps; where set, overrides epochs",
        minimum=1,
        maximum=100_000_000,
    )
    batch_size: int = field(
        16, "rows in one optimizer step, on all devices", minimum=1, maximum=2**20
    )
    accumulation: int = field(
        1, "microbatches that a step is cut into, to save memory", minimum=1
    )
    rows_per_device: int | None = field(
        None,
        "rows that a device computes at a time, on whatever mesh: a step is cut into as"
        " many microbatches as that takes; accumulation above 1 goes before it",
        minimum=1,
        maximum=2**20,
    )
    precision: str = field(
        "fp32",
        "arithmetic of the layers; parameters and losses stay fp32",
        choices=("fp32", "bf16"),
    )
    log_every_steps: int = field(
        10, "steps between two training lines in metrics.jsonl", minimum=1
    )
    phases: tuple[str, ...] = field(
        (),
        "what is trained in turn, and for how long, as head@1epoch,"
        "head+layers[-2:]@200steps,all; names are all, head (what the task adds) or"
        " parts of parameters' names; the rest is frozen; empty: all, all the time",
    )

    def __post_init__(self) -> None:
        parse_phases(self.phases)
        if self.batch_size % self.accumulation:
            raise ConfigError(
                "train.accumulation",
                f"{self.accumulation} is not allowed; a divisor of"
                f" config.train.batch_size, which is {self.batch_size}",
            )

    def microbatches(self, devices: int) -> int:
        """How many a step is cut into where so many devices share its rows.

        Rather a few more than such as leave over an eighth of their places empty.
        """
        if self.accumulation > 1 or self.rows_per_device is None:
            return self.accumulation
        rows = -(-self.batch_size // devices)
        least = -(-rows // self.rows_per_device)
        fits = (n for n in range(least, 2 * least) if -rows % n <= rows / 8)
        return next(fits, least)


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer (Loshchilov and Hutter, 2019 for adamw)."""

    name: str = field("adamw", "the update rule", choices=("adamw",))
    learning_rate: float = field(5e-5, "peak learning rate", above=0.0, maximum=10.0)
    weight_decay: float = field(
        0.01, "decoupled decay of matrices, not biases or norms", minimum=0.0, below=1.0
    )
    # The limits of these two are what fp32 can hold, with room.
    clip_norm: float | None = field(
        1.0,
        "greatest global norm of the gradient; none: no clipping",
        minimum=1e-30,
        maximum=1e30,
    )
    beta1: float = field(0.9, "decay of the first moment", minimum=0.0, below=1.0)
    beta2: float = field(0.999, "decay of the second moment", minimum=0.0, below=1.0)
    epsilon: float = field(
        1e-8, "added to the root of the second moment", minimum=1e-30, maximum=1.0
    )


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves."""

    name: str = field(
        "linear",
        "shape after warmup: constant, or to zero by a line or half a cosine",
        choices=("constant", "linear", "cosine"),
    )
    warmup_ratio: float = field(
        0.1,
        "share of the steps, rounded up, in which the rate rises to its peak",
        minimum=0.0,
        maximum=1.0,
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept on disk."""

    every_steps: int | None = field(
        None,
        "steps between checkpoints; none: only at evaluations and at the end",
        minimum=1,
    )
    keep_last: int = field(2, "newest checkpoints kept", minimum=1)
    keep_best: int = field(1, "best checkpoints kept by evaluate.metric", minimum=0)
    on_error: str = field(
        "stop",
        "where a checkpoint or a record of training cannot be written, as on a full"
        " disk: stop with the reason, or say so, go_on and try the next; the last must"
        " be written",
        choices=("stop", "go_on"),
    )


@dataclass(frozen=True)
class EvaluateConfig:
    """When the validation set is scored, and by what."""

    every_steps: int | None = field(
        None, "steps between evaluations; where set, overrides every_epochs", minimum=1
    )
    every_epochs: int = field(1, "epochs between evaluations", minimum=1)
    metric: str = field(
        "auto",
        "which metric picks the best checkpoint; auto: the task's headline (f1,"
        " accuracy or -perplexity); loss or any score in results/*.json; -name where"
        " smaller is better",
    )
    batch_size: int = field(
        32, "rows scored at a time, on all devices", minimum=1, maximum=2**16
    )
    at_start: bool = field(True, "also score the model before the first step")

    def __post_init__(self) -> None:
        if not self.metric.removeprefix("-").strip():
            raise ConfigError(
                "evaluate.metric",
                f"{self.metric!r} is not allowed; auto or the name of a metric",
            )
