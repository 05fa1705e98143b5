"""Named entity recognition: a pretrained BERT on the sample corpus.

python -m jaxlm.main --config=configs/ner.py                 the embedded default
python -m jaxlm.main --config=configs/ner.py:tiny            seconds, no download
python -m jaxlm.main --config=configs/ner.py:conll2003       CoNLL-2003 from the hub
python -m jaxlm.main --config=configs/ner.py:article         the usual tutorial's recipe
"""

from jaxlm.core.config import pick
from jaxlm.experiment import presets


def get_config(variant: str = ""):
    """The config of a variant; --explain prints every value of it."""
    config = presets.start("token_classification")
    pick(
        variant,
        {"": default, "tiny": presets.tiny, "conll2003": conll2003, "article": article},
    )(config)
    return config


def default(config):
    """As jaxlm/experiment/presets.py starts it: set here what yours has otherwise."""


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
