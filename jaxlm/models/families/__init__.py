"""Every architecture that loads, by the ``model_type`` of its config.json."""

from jaxlm.models.families.base import Family, Weight
from jaxlm.models.families.bert import BERT

FAMILIES = {family.model_type: family for family in (BERT,)}

__all__ = ["FAMILIES", "Family", "Weight"]
