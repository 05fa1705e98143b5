"""What ``configs/`` and ``jaxlm.api`` start from; here, as no wheel holds ``configs/``.

Free of jax.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxlm.core.config import to_config_dict
from jaxlm.experiment.config import ExperimentConfig

if TYPE_CHECKING:
    from ml_collections import ConfigDict

STARTS = {
    "token_classification": ("sample:ner", 12, 3e-4),
    "text_classification": ("sample:topics", 10, 2e-4),
    "masked_lm": ("sample:text", 20, 1e-3),
    "causal_lm": ("sample:text", 20, 1e-3),
}
"""By task: the sample corpus, and the epochs and learning rate that suit it."""
NEW = {"masked_lm": "random:tiny", "causal_lm": "random:gpt-tiny"}
"""By task of pretraining: a very small model, from nothing."""


def start(task: str) -> ConfigDict:
    """The defaults of a task: a pretrained model on the sample corpus.

    Rows hold about five sentences each, so 4 rows are a batch of 20. Pretraining begins
    with a very small new model.
    """
    sample, epochs, rate = STARTS[task]
    config: Any = to_config_dict(ExperimentConfig)
    config.task.name = task
    config.data.train = config.data.validation = config.data.test = sample
    config.train.epochs = epochs
    config.train.batch_size = 4
    config.optimizer.learning_rate = rate
    if task in NEW:
        config.model.pretrained, config.model.dropout = NEW[task], 0.0
        config.train.batch_size = 16
    return config


def tiny(config: Any) -> None:
    """A very small random model on a piece of the sample: seconds, to the end."""
    sample, _, _ = STARTS[config.task.name]
    config.model.pretrained = NEW.get(config.task.name, "random:tiny")
    config.data.train = f"{sample}[:64]"
    config.data.validation = config.data.test = f"{sample}[:32]"
    config.data.max_length = 64
    config.model.dropout = 0.0
    config.train.epochs = 20
    config.evaluate.every_epochs = 5
    config.optimizer.learning_rate = 1e-3


def at_scale(config: Any) -> None:
    """What pretraining at scale has in common: a corpus of one's own, many devices.

    Parameters, moments and rows are split over all devices, layers are scanned, and
    there is no dropout, since a large corpus is hardly seen twice.
    """
    config.data.train = config.data.validation = config.data.test = ""
    config.model.scan = True
    config.model.dropout = 0.0
    config.train.precision = "bf16"
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.optimizer.weight_decay = 0.1
    config.optimizer.beta2 = 0.95
    config.schedule.name = "cosine"
    config.schedule.warmup_ratio = 0.01
    config.evaluate.every_steps = config.checkpoint.every_steps = 1000
    config.evaluate.at_start = False
