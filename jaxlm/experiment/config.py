"""The typed config of an experiment, put together from those of all packages."""

from __future__ import annotations

from dataclasses import dataclass

from jaxlm.core.schema import ConfigError, field
from jaxlm.data.config import DataConfig
from jaxlm.models.config import ModelConfig
from jaxlm.tasks.config import TaskConfig
from jaxlm.train.config import (
    CheckpointConfig,
    EvaluateConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)

AXES = ("data", "fsdp", "tensor", "context")


def _split(default: tuple[str, ...], what: str) -> tuple[str, ...]:
    return field(default, f"mesh axes that split {what}", choices=AXES)


@dataclass(frozen=True)
class RulesConfig:
    """Logical axis to mesh axes: how parameters and activations lie on the mesh.

    An empty rule never splits. Within one array a mesh axis is used once, by the first
    dimension whose rule has it.
    """

    batch: tuple[str, ...] = _split(("data", "fsdp"), "the rows of a batch")
    sequence: tuple[str, ...] = _split(("context",), "the tokens of a row")
    width: tuple[str, ...] = _split(("fsdp",), "hidden states")
    vector: tuple[str, ...] = _split((), "biases and scales as wide as hidden states")
    heads: tuple[str, ...] = _split(("tensor",), "the heads of attention")
    head_size: tuple[str, ...] = _split((), "what is inside a head")
    mlp: tuple[str, ...] = _split(("tensor",), "the middle of the mlp")
    vocab: tuple[str, ...] = _split(("tensor",), "the table of tokens")
    layers: tuple[str, ...] = _split((), "the layers of a stack")


@dataclass(frozen=True)
class MeshConfig:
    """How many devices each mesh axis has, -1 for the rest, and what they split.

    Across slices of TPUs goes ``data``, or else ``fsdp``: whichever their number
    divides.
    """

    layout: str = field(
        "manual",
        "who chooses the sizes: manual, those below, or auto, the planner, which"
        " compiles the step for meshes of the devices that are here",
        choices=("manual", "auto"),
    )
    data: int = field(-1, "devices that split the rows", minimum=-1)
    fsdp: int = field(1, "devices that split rows and parameters", minimum=-1)
    tensor: int = field(1, "devices that split heads and mlp", minimum=-1)
    context: int = field(1, "devices that split the sequence", minimum=-1)
    rules: RulesConfig = field(RulesConfig(), "which of these split what")

    @property
    def sizes(self) -> dict[str, int]:
        """Devices by axis of the mesh."""
        return {axis: getattr(self, axis) for axis in AXES}

    def __post_init__(self) -> None:
        rest = [f"mesh.{axis}" for axis, size in self.sizes.items() if size == -1]
        if len(rest) > 1:
            raise ConfigError(
                rest[-1], f"-1 is not allowed; config.{rest[0]} takes the rest already"
            )
        for axis, size in self.sizes.items():
            if size == 0:
                raise ConfigError(
                    f"mesh.{axis}", "0 is not allowed; a number of devices, or -1"
                )


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that a run is made from."""

    seed: int = field(  # seed + 1, too, is one: that of dropout
        0, "seed of weights, dropout and data order", minimum=0, maximum=2**32 - 2
    )
    task: TaskConfig = field(TaskConfig(), "what is learned")
    model: ModelConfig = field(ModelConfig(), "which model")
    data: DataConfig = field(DataConfig(), "which data")
    train: TrainConfig = field(TrainConfig(), "how long and in what portions")
    optimizer: OptimizerConfig = field(OptimizerConfig(), "which update rule")
    schedule: ScheduleConfig = field(ScheduleConfig(), "how the learning rate moves")
    mesh: MeshConfig = field(MeshConfig(), "how devices share the work")
    checkpoint: CheckpointConfig = field(CheckpointConfig(), "what is kept on disk")
    evaluate: EvaluateConfig = field(EvaluateConfig(), "when the model is scored")
