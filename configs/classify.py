"""Text classification: which of eight registers a sentence was written in.

python -m jaxlm.main --config=configs/classify.py
python -m jaxlm.main --config=configs/classify.py:tiny       seconds, no download

Your own data:
--config.data.train=reviews.csv --config.data.columns=text=review,label=stars
--config.data.validation=dev.csv --config.data.test=
"""

from jaxlm.core.config import pick
from jaxlm.experiment import presets


def get_config(variant: str = ""):
    """The config of a variant; --explain prints every value of it."""
    config = presets.start("text_classification")
    pick(variant, {"": default, "tiny": presets.tiny})(config)
    return config


def default(config):
    """As jaxlm/experiment/presets.py starts it: set here what yours has otherwise."""
