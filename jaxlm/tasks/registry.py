"""Every task, by its name in ``config.task.name``."""

from __future__ import annotations

from jaxlm.tasks.causal_lm import CausalLanguageModeling
from jaxlm.tasks.masked_lm import MaskedLanguageModeling
from jaxlm.tasks.text_classification import TextClassification
from jaxlm.tasks.token_classification import TokenClassification

TASKS = {
    task.name: task
    for task in (
        TokenClassification,
        TextClassification,
        MaskedLanguageModeling,
        CausalLanguageModeling,
    )
}
