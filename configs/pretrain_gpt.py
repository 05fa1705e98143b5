"""Causal language modelling, from nothing or from a model: GPT-2 and Llama 2.

python -m jaxlm.main --config=configs/pretrain_gpt.py             the built-in sample
python -m jaxlm.main --config=configs/pretrain_gpt.py:tiny        seconds
python -m jaxlm.main --config=configs/pretrain_gpt.py:124m \
    --config.data.train='corpus/*.txt'                            or :1.5b, :7b, :70b

A file of text is cut into rows of ``data.max_length`` tokens. To go on from a model:
--config.model.pretrained=hf:openai-community/gpt2 --config.model.tokenizer=
"""

from jaxlm.core.config import pick
from jaxlm.experiment import presets


def get_config(variant: str = ""):
    """The config of a variant; --explain prints every value of it."""
    config = presets.start("causal_lm")
    variants = {"": default, "tiny": presets.tiny}
    variants |= {"124m": small, "1.5b": xl, "7b": llama_7b, "70b": llama_70b}
    pick(variant, variants)(config)
    return config


def default(config):
    """As jaxlm/experiment/presets.py starts it: a very small new model."""


def small(config):
    """GPT-2 of 124 M parameters, as nanoGPT trains it: half a million tokens a step."""
    config.model.pretrained = "random:gpt2"
    config.model.tokenizer = "hf:openai-community/gpt2"
    config.model.vocab_multiple = 128
    presets.at_scale(config)
    config.data.max_length = 1024
    config.train.batch_size = 512
    config.train.rows_per_device = 16
    config.train.steps = 600_000
    config.optimizer.learning_rate = 6e-4


def xl(config):
    """GPT-2 of 1.5 B parameters."""
    small(config)
    config.model.pretrained = "random:gpt2-xl"
    config.model.remat = "dots"
    config.optimizer.learning_rate = 2e-4


def llama_7b(config):
    """Llama 2 of 7 B parameters (arXiv:2307.09288): 4 M tokens a step, 2 T in all."""
    config.model.pretrained = "random:llama-7b"
    config.model.tokenizer = "hf:NousResearch/Llama-2-7b-hf"
    presets.at_scale(config)
    config.model.remat = "dots"
    config.data.max_length = 4096
    config.train.batch_size = 1024
    config.train.rows_per_device = 4
    config.train.steps = 500_000
    config.optimizer.learning_rate = 3e-4
    config.schedule.warmup_ratio = 0.004


def llama_70b(config):
    """Llama 2 of 70 B parameters."""
    llama_7b(config)
    config.model.remat = "block"
    config.model.pretrained = "random:llama-70b"
    config.model.tokenizer = "hf:NousResearch/Llama-2-70b-hf"
    config.optimizer.learning_rate = 1.5e-4
