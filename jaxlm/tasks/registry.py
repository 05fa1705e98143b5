"""Every task, by its name in ``config.task.name``."""

from __future__ import annotations

from collections.abc import Sequence

from jaxlm.core.types import Task
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.data.windows import Windowing
from jaxlm.tasks.config import TaskConfig
from jaxlm.tasks.text_classification import TextClassification
from jaxlm.tasks.token_classification import TokenClassification

TASKS = {task.name: task for task in (TokenClassification, TextClassification)}


def make_task(
    config: TaskConfig, labels: Sequence[str], tokenizer: Tokenizer, windowing: Windowing
) -> Task:
    """Build the task that the config names, with its resolved label set."""
    if config.name == TextClassification.name:
        return TextClassification(labels, tokenizer, windowing, config.pooling)
    return TokenClassification(labels, tokenizer, windowing)
