"""Named entity recognition: a pretrained BERT on the sample corpus.

python -m jaxlm.main --config=configs/ner.py                 the embedded default
python -m jaxlm.main --config=configs/ner.py:tiny            seconds, no download
python -m jaxlm.main --config=configs/ner.py:conll2003       CoNLL-2003 from the hub
python -m jaxlm.main --config=configs/ner.py:article         the usual tutorial's recipe
"""

from jaxlm.core.config import pick, to_config_dict
from jaxlm.experiment import ExperimentConfig


def get_config(variant: str = ""):
    """The config of a variant."""
    config = to_config_dict(ExperimentConfig)
    config.task.name = "token_classification"
    config.data.train = config.data.validation = config.data.test = "sample:ner"
    config.train.epochs = 12
    config.train.batch_size = 4
    config.optimizer.learning_rate = 3e-4
    pick(
        variant, {"": default, "tiny": tiny, "conll2003": conll2003, "article": article}
    )(config)
    return config


def default(config):
    """Rows hold about five sentences each, so 4 rows are a batch of 20."""


def tiny(config):
    """A very small random model on a piece of the sample: seconds, to the end."""
    config.model.pretrained = "random:tiny"
    config.data.train = "sample:ner[:64]"
    config.data.validation = config.data.test = "sample:ner[:32]"
    config.data.max_length = 64
    config.model.dropout = 0.0
    config.train.epochs = 20
    config.evaluate.every_epochs = 5
    config.optimizer.learning_rate = 1e-3


def conll2003(config):
    """CoNLL-2003 (Tjong Kim Sang and De Meulder, 2003) with bert-base-cased."""
    config.model.pretrained = "hf:google-bert/bert-base-cased"
    source = "hf:eriktks/conll2003@refs/convert/parquet"
    config.data.train = f"{source}:train"
    config.data.validation = f"{source}:validation"
    config.data.test = f"{source}:test"
    config.train.epochs = 4
    config.train.batch_size = 8
    config.optimizer.learning_rate = 5e-5


def article(config):
    """The recipe of most tutorials: constant 2e-5, 16 sentences a batch, no packing."""
    conll2003(config)
    config.data.packing = False
    config.data.max_length = 128
    config.train.epochs = 5
    config.train.batch_size = 16
    config.optimizer.learning_rate = 2e-5
    config.schedule.name = "constant"
    config.schedule.warmup_ratio = 0.0
