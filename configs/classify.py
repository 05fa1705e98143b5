"""Text classification: which of eight registers a sentence was written in.

python -m jaxlm.main --config=configs/classify.py
python -m jaxlm.main --config=configs/classify.py:tiny       seconds, no download

Your own data:
--config.data.train=reviews.csv --config.data.columns=text=review,label=stars
"""

from jaxlm.core.config import pick, to_config_dict
from jaxlm.experiment import ExperimentConfig


def get_config(variant: str = ""):
    """The config of a variant."""
    config = to_config_dict(ExperimentConfig)
    config.task.name = "text_classification"
    config.data.train = config.data.validation = config.data.test = "sample:topics"
    config.train.epochs = 10
    config.train.batch_size = 4
    config.optimizer.learning_rate = 2e-4
    pick(variant, {"": default, "tiny": tiny})(config)
    return config


def default(config):
    """Rows hold about five sentences each, so 4 rows are a batch of 20."""


def tiny(config):
    """A very small random model on a piece of the sample: seconds, to the end."""
    config.model.pretrained = "random:tiny"
    config.data.train = "sample:topics[:64]"
    config.data.validation = config.data.test = "sample:topics[:32]"
    config.data.max_length = 64
    config.model.dropout = 0.0
    config.train.epochs = 20
    config.evaluate.every_epochs = 5
    config.optimizer.learning_rate = 1e-3
