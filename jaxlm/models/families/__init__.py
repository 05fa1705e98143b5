"""Every architecture that loads, by the ``model_type`` of its config.json."""

from jaxlm.models.families.albert import ALBERT
from jaxlm.models.families.base import HEADS, MOST_LABELS, Family, Weight, read
from jaxlm.models.families.bert import BERT
from jaxlm.models.families.deberta_v2 import DEBERTA_V2
from jaxlm.models.families.distilbert import DISTILBERT
from jaxlm.models.families.electra import ELECTRA
from jaxlm.models.families.gemma2 import GEMMA2
from jaxlm.models.families.gemma3 import GEMMA3
from jaxlm.models.families.gpt2 import GPT2
from jaxlm.models.families.gpt_neox import GPT_NEOX
from jaxlm.models.families.llama import LLAMA
from jaxlm.models.families.mistral import MISTRAL
from jaxlm.models.families.modernbert import MODERNBERT
from jaxlm.models.families.qwen2 import QWEN2
from jaxlm.models.families.qwen3 import QWEN3
from jaxlm.models.families.roberta import ROBERTA, XLM_ROBERTA
from jaxlm.models.families.t5 import MT5, T5

ENCODERS = (
    BERT,
    ROBERTA,
    XLM_ROBERTA,
    DISTILBERT,
    ALBERT,
    ELECTRA,
    MODERNBERT,
    DEBERTA_V2,
)
DECODERS = (GPT2, GPT_NEOX, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3)
ENCODER_DECODERS = (T5, MT5)
FAMILIES = {
    family.model_type: family for family in (*ENCODERS, *DECODERS, *ENCODER_DECODERS)
}

__all__ = ["DECODERS", "ENCODERS", "ENCODER_DECODERS", "FAMILIES"]
__all__ += ["HEADS", "MOST_LABELS", "Family", "Weight", "read"]
