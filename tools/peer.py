"""The peer's side of our benchmarks: one run of transformers' Trainer, as JSON.

python tools/peer.py --model=DIRECTORY --train=train.conll --validation=dev.conll \\
  --test=test.conll --epochs=5 --batch-size=20 --learning-rate=3e-4 --output=peer.json

What a user of transformers writes: AutoModel, AutoTokenizer, dynamic padding, Trainer
with its defaults (AdamW, clipping at 1, linear decay), on the CPU. The files are read
by our readers, so that both sides have the same records; scores are seqeval's and
sklearn's. Needs the extra `parity`, and `test` for the scores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from jaxlm.data.config import DataConfig
from jaxlm.data.sources import load

IGNORED = -100
SETTLE_STEPS = 3
"""Steps that are left out of the speed: torch chooses and packs in the first ones."""


def main() -> None:
    flags = parse()
    torch.manual_seed(flags.seed)
    splits = {
        name: load(
            getattr(flags, name), name, format="auto", columns=flags.columns,
            scheme=DataConfig().scheme,
        )
        for name in ("train", "validation", "test")
        if getattr(flags, name)
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(flags.model)
    side = (Entities if "labels" in splits["train"][0] else Texts)(tokenizer, splits)
    model = side.kind.from_pretrained(flags.model, num_labels=len(side.labels))
    encoded = {
        name: [side.encode(record, flags.max_length) for record in records]
        for name, records in splits.items()
    }
    watch = Watch()
    side.scored = splits.get("validation")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Counting(
            watch,
            model,
            arguments(flags, folder),
            train_dataset=encoded["train"],
            eval_dataset=encoded.get("validation"),
            data_collator=side.collator,
            compute_metrics=lambda outputs: {"score": side.score(outputs)},
            callbacks=[watch],
        )
        trainer.train()
        found = watch.figures()
        if "test" in encoded and not flags.stop_after:
            side.scored = splits["test"]
            outputs = trainer.predict(encoded["test"])
            found["test"] = outputs.metrics["test_score"]
            found["validation"] = trainer.state.best_metric
    found["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}  # fmt: skip  # noqa: E501
    flags.output.write_text(json.dumps(found))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--validation", default="")
    parser.add_argument("--test", default="")
    parser.add_argument("--columns", default="")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--group-by-length", action="store_true")
    parser.add_argument("--score-at-start", action="store_true")
    parser.add_argument("--stop-after", type=int, help="steps; scores nothing then")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def arguments(flags: argparse.Namespace, folder: str) -> TrainingArguments:
    """The Trainer's defaults, but for the recipe that both sides share."""
    scored = flags.validation and not flags.stop_after
    epochly = "epoch" if scored else "no"
    return TrainingArguments(
        folder,
        num_train_epochs=flags.epochs,
        max_steps=flags.stop_after or -1,
        per_device_train_batch_size=flags.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=flags.learning_rate,
        warmup_steps=0.1,
        weight_decay=0.01,
        seed=flags.seed,
        use_cpu=True,
        train_sampling_strategy="group_by_length"
        if flags.group_by_length
        else "random",
        eval_strategy=epochly,
        eval_on_start=flags.score_at_start,
        save_strategy=epochly,
        save_total_limit=1,
        load_best_model_at_end=bool(scored),
        metric_for_best_model="score" if scored else None,
        report_to="none",
        disable_tqdm=True,
    )


class Entities:
    """Named entities: the first piece of a word bears its label."""

    kind = AutoModelForTokenClassification

    def __init__(self, tokenizer, splits):
        self.tokenizer, self.scored = tokenizer, None
        found = {label for each in splits["train"] for label in each["labels"]}
        self.labels = ["O", *sorted(found - {"O"})]
        self.collator = DataCollatorForTokenClassification(tokenizer)

    def encode(self, record, max_length):
        made = self.tokenizer(
            list(record["tokens"]),
            is_split_into_words=True,
            truncation=True,
            max_length=max_length,
        )
        words, last = made.word_ids(), None
        made["labels"] = []
        for word in words:
            new = word is not None and word != last
            known = record["labels"][word] if new else None
            label = self.labels.index(known) if known in self.labels else IGNORED
            made["labels"].append(label)
            last = word
        return dict(made)

    def score(self, outputs):
        """Micro F1 of entities by seqeval; words that were cut off count as O."""
        from seqeval.metrics import f1_score

        chosen = outputs.predictions.argmax(-1)
        predicted = []
        for record, row, real in zip(
            self.scored, chosen, outputs.label_ids, strict=True
        ):
            found = [self.labels[each] for each in row[real != IGNORED]]
            predicted.append(found + ["O"] * (len(record["labels"]) - len(found)))
        return f1_score([list(each["labels"]) for each in self.scored], predicted)


class Texts:
    """Classes of texts: accuracy."""

    kind = AutoModelForSequenceClassification

    def __init__(self, tokenizer, splits):
        self.tokenizer, self.scored = tokenizer, None
        self.labels = sorted({each["label"] for each in splits["train"]})
        self.collator = DataCollatorWithPadding(tokenizer)

    def encode(self, record, max_length):
        made = self.tokenizer(record["text"], truncation=True, max_length=max_length)
        return {**made, "labels": self.labels.index(record["label"])}

    def score(self, outputs):
        from sklearn.metrics import accuracy_score

        return float(accuracy_score(outputs.label_ids, outputs.predictions.argmax(-1)))


class Watch(TrainerCallback):
    """Times of steps, and the useful tokens in each."""

    def __init__(self):
        self.tokens, self.ends = [], []

    def on_step_end(self, args, state, control, **_):
        self.ends.append(time.time())
        return control

    def figures(self):
        """When the first step was done; tokens a second of the steps from then on.

        Steps that an evaluation or a checkpoint stood before are left out, as in our
        own figure: those of over thrice the median's time.
        """
        seconds = np.diff(self.ends)[SETTLE_STEPS:]
        tokens = np.array(self.tokens[SETTLE_STEPS + 1 :])
        kept = seconds <= 3 * np.median(seconds) if len(seconds) else []
        return {
            "first_step": self.ends[0],
            "steps": len(self.ends),
            "tokens_per_step": float(np.mean(self.tokens)),
            "tokens_per_second": float(tokens[kept].sum() / seconds[kept].sum())
            if len(seconds)
            else None,
        }


class Counting(Trainer):
    """A Trainer that notes the useful tokens of each training step."""

    def __init__(self, watch, *rest, **more):
        super().__init__(*rest, **more)
        self.watch = watch

    def training_step(self, model, inputs, *rest, **more):
        self.watch.tokens.append(int(inputs["attention_mask"].sum()))
        return super().training_step(model, inputs, *rest, **more)


if __name__ == "__main__":
    main()
