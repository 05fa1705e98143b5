"""Weights out: a run, or an untouched checkpoint, as a folder for transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.core.files import atomic_write_json
from jaxlm.data.tokenizer import GENERAL, Tokenizer
from jaxlm.experiment.model_card import run_card, source_card
from jaxlm.experiment.runs import Run
from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.checkpoint import RANDOM, Checkpoint, read_config
from jaxlm.models.exporting import (
    CARD,
    SETTINGS,
    Layout,
    copy_files,
    export_source,
    param_tensors,
)
from jaxlm.models.families import Family
from jaxlm.train.recorded import read_object

HEADS = {
    "token_classification": "tokens",
    "text_classification": "text",
    "masked_lm": "language",
    "causal_lm": "language",
}
"""The kind of head that a task learns; see ``Family.heads``."""
AUTO = {
    None: "AutoModel",
    "tokens": "AutoModelForTokenClassification",
    "text": "AutoModelForSequenceClassification",
    "answers": "AutoModelForQuestionAnswering",
    "detector": "AutoModelForPreTraining",
}
MASKED_LM = (
    "albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "roberta",
    "xlm-roberta",
)  # fmt: skip
CAUSAL_LM = {
    "bert": "BertLMHeadModel", "electra": "ElectraForCausalLM",
    "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel", "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "roberta": "RobertaForCausalLM", "xlm-roberta": "XLMRobertaForCausalLM",
}  # fmt: skip
SPECIAL = {
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
    "eos_token": ("<|endoftext|>", "</s>"),
    "bos_token": ("<|endoftext|>", "<s>"),
}
"""What special tokens are usually called."""


def export_run(
    run: Run,
    step: int,
    output: Path,
    layout: Layout,
    say: Callable[[str], None] = print,
) -> None:
    """Write a checkpoint of a run as transformers' model of its task.

    Raises:
      UserError: transformers has no class for it, or the output is in use.
    """
    head = HEADS.get(run.config.task.name)
    model = run.workdir / "model"
    family, transformer, hf = read_config(model)
    if head == "language":
        name = language_class(family, transformer.causal)
    else:
        name = family.class_name(head) if head else None
    if head is None or name is None:
        raise UserError(
            f"{run.workdir}: transformers has no {run.config.task.name} for"
            f" {family.model_type}, so nothing would open an export"
        )
    config = run_config(run, hf, head, name)
    checkpoint = Checkpoint(model, family, run.parts.transformer, config, None)
    with layout.folder(output, [run.workdir, *sources(run)]) as folder:
        tensors = param_tensors(checkpoint, run.params(step), head, layout.dtype)
        run.parts.tokenizer.save(folder)
        copy_files(model, folder, SETTINGS)
        settle_tokenizer(
            folder,
            run.parts.tokenizer,
            longest=run.parts.transformer.max_positions,
            padded=config.get("pad_token_id"),
            pooled=head == "text" and run.parts.transformer.pooling.reads == "last",
            typed=run.parts.transformer.type_vocab_size > 0,
        )
        layout.write(folder, config, tensors, say)
        card = run_card(
            run.workdir,
            run.config,
            step,
            name=output.resolve().name,
            head=head,
            labels=run.parts.task.labels,
            opens=opens_by(head, transformer),
        )
        (folder / CARD).write_text(card, encoding="utf-8")


def language_class(family: Family, causal: bool) -> str | None:
    """The class of transformers for a family's head over the vocabulary.

    By tables of our own: transformers hides its tables where there is no PyTorch.
    """
    if causal:
        return CAUSAL_LM.get(family.model_type)
    masked = family.model_type in MASKED_LM
    return f"{family.stem}ForMaskedLM" if masked else None


def sources(run: Run) -> list[Path]:
    """The folder that a run's pretrained model was read from, where it is there."""
    folder = Path(run.config.model.pretrained.removeprefix(RANDOM))
    return [folder] if folder.is_dir() else []


def run_config(run: Run, hf: dict[str, Any], head: str, name: str) -> dict[str, Any]:
    """The config.json of what a run has made of its pretrained model.

    Raises:
      UserError: it classifies texts by a mean that transformers does not take.
    """
    labels = run.parts.task.labels
    gone = ("num_labels", "_num_labels", "auto_map", "finetuning_task", "problem_type")
    config = {key: value for key, value in hf.items() if key not in gone}
    config["architectures"] = [name]
    config["vocab_size"] = run.parts.transformer.vocab_size  # new tokens, too
    if labels:
        config["id2label"] = {str(number): each for number, each in enumerate(labels)}
        config["label2id"] = {each: number for number, each in enumerate(labels)}
    if head != "text":
        return config
    pooling = run.parts.transformer.pooling
    if run.config.task.pooling == "mean":
        if not pooling.every_token:
            raise UserError(
                f"{run.workdir}: config.task.pooling=mean, which no class of"
                f" transformers for {hf['model_type']} does; train with"
                " config.task.pooling=cls to export"
            )
        config["classifier_pooling"] = "mean"
    config["problem_type"] = "single_label_classification"
    if pooling.reads == "last":
        config["pad_token_id"] = padding(run.parts.tokenizer, config)
    return config


def padding(tokenizer: Tokenizer, hf: dict[str, Any]) -> int:
    """By what transformers finds the last token of a text: the last that is no padding.

    So a token with which no text ends: the padding where that is no end of texts, else
    what stands before texts, or another special token. Only where there is none, it is
    the end: then a text that has it written out at its end is read without it.
    """
    ends = hf.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    last = tokenizer.frame.after[-1:]
    added = json.loads(tokenizer.serialised)["added_tokens"]
    unfit = (*SPECIAL["unk_token"], *SPECIAL["mask_token"])
    special = [
        each["id"] for each in added if each["special"] and each["content"] not in unfit
    ]
    named = [tokenizer.number(name) for name in SPECIAL["pad_token"]]
    known = [hf.get("pad_token_id"), *named, *tokenizer.frame.before, *special]
    known = [
        number
        for number in known
        if isinstance(number, int) and 0 <= number < hf["vocab_size"]
    ]
    fit = [number for number in known if number not in (*ends, *last)]
    ends = [end for end in ends if isinstance(end, int)]
    return [*fit, *known, *ends, 0][0]


def settle_tokenizer(
    folder: Path,
    tokenizer: Tokenizer,
    longest: int,
    padded: int | None,
    pooled: bool,
    typed: bool,
) -> None:
    """See to it that AutoTokenizer gives what the run was trained with.

    Runs of before kept no tokenizer_config.json: then tokenizer.json alone counts. A
    ``BertTokenizer`` takes options that it does not find for true. ``pooled``: by the
    padding the last token is found, so that it must be that of config.json.
    """
    path = folder / "tokenizer_config.json"
    state = json.loads(tokenizer.serialised)
    settings: dict[str, Any]
    if path.exists():
        settings = read_object(path)
        settings.pop("auto_map", None)
        own = state["normalizer"] or {}
        if own.get("type") == "BertNormalizer":
            if settings.get("tokenizer_class") not in GENERAL:
                settings["do_lower_case"] = own["lowercase"]
                settings["strip_accents"] = own["strip_accents"]
                settings["tokenize_chinese_chars"] = own["handle_chinese_chars"]
    else:
        settings = {"tokenizer_class": GENERAL[0]}
        for key, names in SPECIAL.items():
            there = [name for name in names if tokenizer.number(name) is not None]
            settings[key] = there[0] if there else None
    settings.setdefault("model_max_length", longest)
    if padded is not None and (pooled or settings.get("pad_token") is None):
        settings["pad_token"] = tokenizer.token(padded)
        beside = folder / "special_tokens_map.json"  # which is believed before
        if beside.exists():
            others = {**read_object(beside), "pad_token": settings["pad_token"]}
            atomic_write_json(beside, others)
    if not typed:  # GPT-2 adds to every token what it is given as types
        settings["model_input_names"] = ["input_ids", "attention_mask"]
    known = {key: value for key, value in settings.items() if value is not None}
    atomic_write_json(path, known)


def opens_by(head: str | None, config: TransformerConfig) -> str:
    """The class of transformers that opens a model by itself."""
    if config.decoder is not None:
        return AUTO.get(head, "AutoModelForSeq2SeqLM")
    language = "AutoModelForCausalLM" if config.causal else "AutoModelForMaskedLM"
    return AUTO.get(head, language)


def export_model(
    source: str,
    output: Path,
    layout: Layout,
    say: Callable[[str], None] = print,
) -> None:
    """Write an untouched checkpoint again; see ``export_source``."""

    def card(checkpoint: Checkpoint, head: str | None) -> str:
        opens = opens_by(head, checkpoint.config)
        return source_card(source, checkpoint.family.model_type, head, opens)

    export_source(source, output, layout, card, say)
