"""Masked language modelling, from nothing or from a model: BERT (arXiv:1810.04805).

python -m jaxlm.main --config=configs/pretrain_bert.py            the built-in sample
python -m jaxlm.main --config=configs/pretrain_bert.py:tiny       seconds
python -m jaxlm.main --config=configs/pretrain_bert.py:base \
    --config.data.train='corpus/*.txt'                            or :large

A file of text is cut into rows of ``data.max_length`` tokens. To go on from a model:
--config.model.pretrained=hf:google-bert/bert-base-uncased --config.model.tokenizer=
"""

from jaxlm.core.config import pick
from jaxlm.experiment import presets


def get_config(variant: str = ""):
    """The config of a variant; --explain prints every value of it."""
    config = presets.start("masked_lm")
    pick(variant, {"": default, "tiny": presets.tiny, "base": base, "large": large})(
        config
    )
    return config


def default(config):
    """As jaxlm/experiment/presets.py starts it: a very small new model."""


def base(config):
    """BERT-base: 110 M parameters, 256 rows of 512 tokens a step.

    Devlin et al. trained 90% of a million steps on rows of 128 tokens; here all have
    512, and there is no dropout, as a corpus is seen once or twice.
    """
    config.model.pretrained = "random:bert-base"
    config.model.tokenizer = "hf:google-bert/bert-base-uncased"
    presets.at_scale(config)
    config.data.max_length = 512
    config.train.batch_size = 256
    config.train.rows_per_device = 16
    config.train.steps = 1_000_000
    config.optimizer.learning_rate = 1e-4
    config.schedule.warmup_ratio = 0.01


def large(config):
    """BERT-large: 335 M parameters, 8192 rows of 512 tokens a step.

    As Liu et al. trained RoBERTa-large (arXiv:1907.11692, table 9), but for dropout.
    Fewer rows a step would leave most of a pod's slice waiting for gradients.
    """
    base(config)
    config.model.pretrained = "random:bert-large"
    config.train.batch_size = 8192
    config.train.steps = 500_000
    config.optimizer.learning_rate = 4e-4
    config.optimizer.beta2 = 0.98
    config.optimizer.epsilon = 1e-6
    config.optimizer.weight_decay = 0.01
    config.schedule.name = "linear"
    config.schedule.warmup_ratio = 0.06
