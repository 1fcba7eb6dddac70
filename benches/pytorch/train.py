#!/usr/bin/env python3
"""The peer of `frostline train`: what the freezes reach in PyTorch, over several seeds.

    python train.py --model demo/minilm --file demo/feedback_products.tsv --task topic --task sentiment \\
        --freezes none,lower:3,backbone --seeds 3 --out pytorch.json

As a careful user would write it: transformers' encoder with SDPA, mean pooling, one linear head per task, frozen
parameters with requires_grad=False, AdamW (fused) over the others, clipping at 1, a linear schedule with 10 % warm-up,
batches padded to their longest row; with --groups N the rows of a batch go through the encoder in N groups by length,
each padded to its own longest: the same function with less padding. model.train() puts dropout into all of the model, frozen or not. A freeze of a head
starts from a head that was trained with the backbone frozen, as `bench --train` does. Results are written after each
run, under the keys of ../accuracy.py; runs that are there are not repeated.

Needs torch and transformers.
"""

import argparse
import csv
import json
import sys
import time
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "golden"))
from reference import takes_decay, trained_names  # noqa: E402

# The standard deviation of new heads, BERT's initializer_range, as in frostline.
HEAD_STD = 0.02


class Model(nn.Module):
    """An encoder, the mean over its tokens, and one linear head per task."""

    def __init__(self, folder: Path, tasks: dict[str, list[str]]):
        super().__init__()
        options = {"attn_implementation": "sdpa", "dtype": torch.float32}
        self.encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False, **options)
        self.heads = nn.ModuleDict()
        for task, labels in tasks.items():
            self.heads[task] = nn.Linear(self.encoder.config.hidden_size, len(labels))
            nn.init.normal_(self.heads[task].weight, std=HEAD_STD)
            nn.init.zeros_(self.heads[task].bias)

    def forward(self, groups) -> dict[str, torch.Tensor]:
        """Logits of the rows, group after group."""
        pooled = []
        for inputs in groups:
            hidden = self.encoder(**inputs).last_hidden_state
            mask = inputs["attention_mask"][:, :, None].to(hidden.dtype)
            pooled.append((hidden * mask).sum(1) / mask.sum(1))
        return {task: head(torch.cat(pooled)) for task, head in self.heads.items()}


def read(args) -> tuple[dict[str, list[str]], dict[str, list[dict]]]:
    """The labels of each task in sorted order, and the rows of both splits as token ids and classes."""
    with open(args.file, newline="", encoding="utf-8") as source:
        rows = list(csv.DictReader(source, delimiter="\t", quoting=csv.QUOTE_NONE))
    tasks = {task: sorted({row[task] for row in rows if row["split"] == "train"}) for task in args.task}
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=args.max_length)["input_ids"]
    splits = {"train": [], "test": []}
    for row, tokens in zip(rows, ids):
        classes = {task: tasks[task].index(row[task]) for task in tasks}
        splits[row["split"]].append({"ids": tokens, "classes": classes})
    return tasks, splits


def batch_of(rows: list[dict], n_groups: int) -> tuple[list[dict], dict]:
    """The inputs of each group, and the labels of their rows in the same order."""
    rows = sorted(rows, key=lambda row: len(row["ids"])) if n_groups > 1 else rows
    size = -(-len(rows) // n_groups)
    groups = [padded([row["ids"] for row in rows[at : at + size]]) for at in range(0, len(rows), size)]
    labels = {task: torch.tensor([row["classes"][task] for row in rows]) for task in rows[0]["classes"]}
    return groups, labels


def padded(texts: list[list[int]]) -> dict:
    longest = max(map(len, texts))
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in texts])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts])
    return {"input_ids": ids, "attention_mask": mask}


def optimizer_of(model: Model, freeze: str, args) -> torch.optim.Optimizer:
    """AdamW over what the freeze leaves, decay and the heads' rate in groups of their own."""
    names = {name.removeprefix("encoder.") if name.startswith("encoder.") else name: parameter
             for name, parameter in model.named_parameters()}
    trained = trained_names(freeze, list(names))
    groups = []
    for name, parameter in names.items():
        parameter.requires_grad_(name in trained)
        if name in trained:
            rate = args.head_learning_rate if name.startswith("heads.") else args.learning_rate
            groups.append({"params": [parameter], "lr": rate, "weight_decay": 0.01 if takes_decay(name) else 0.0})
    return torch.optim.AdamW(groups, fused=True)


def train(model: Model, freeze: str, rows: list[dict], seed: int, args) -> float:
    """Trains in place; returns the seconds of the steps alone."""
    optimizer = optimizer_of(model, freeze, args)
    live = [parameter for parameter in model.parameters() if parameter.requires_grad]
    per_epoch = -(-len(rows) // args.batch_size)
    n_steps = per_epoch * args.epochs
    n_warmup = -(-n_steps // 10)

    def factor(done: int) -> float:
        return done / n_warmup if done < n_warmup else (n_steps - done) / max(1, n_steps - n_warmup)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    begun = time.perf_counter()
    n_done = 0
    for _ in range(args.epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(rows), args.batch_size):
            groups, labels = batch_of([rows[at] for at in order[start : start + args.batch_size]], args.groups)
            logits = model(groups)
            loss = sum(nn.functional.cross_entropy(logits[task], labels[task]) for task in logits)
            loss.backward()
            nn.utils.clip_grad_norm_(live, 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            n_done += 1
            if n_done == args.max_steps:
                return time.perf_counter() - begun
    return time.perf_counter() - begun


def scores(confusion: torch.Tensor) -> dict[str, float]:
    """Accuracy and macro-F1 (classes that never occur count as 0 in neither), as scikit-learn has them."""
    right = confusion.diag().double()
    rows, columns = confusion.sum(1).double(), confusion.sum(0).double()
    seen = (rows + columns) > 0
    f1 = 2 * right[seen] / (rows + columns)[seen]
    return {"accuracy": float(right.sum() / rows.sum()), "macro_f1": float(f1.mean())}


@torch.inference_mode()
def evaluate(model: Model, rows: list[dict], tasks: dict[str, list[str]], n_groups: int) -> dict[str, dict[str, float]]:
    model.eval()
    confusion = {task: torch.zeros(len(labels), len(labels), dtype=torch.int64) for task, labels in tasks.items()}
    for start in range(0, len(rows), 64):
        groups, labels = batch_of(rows[start : start + 64], n_groups)
        for task, logits in model(groups).items():
            for truth, guess in zip(labels[task].tolist(), logits.argmax(1).tolist()):
                confusion[task][truth, guess] += 1
    return {task: scores(counts) for task, counts in confusion.items()}


def run(freeze: str, seed: int, tasks, splits, args) -> dict:
    torch.manual_seed(seed)
    model = Model(args.model, tasks)
    if "head:" in freeze:
        train(model, "backbone", splits["train"], seed, args)
    seconds = train(model, freeze, splits["train"], seed, args)
    return {"eval": evaluate(model, splits["test"], tasks, args.groups), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--file", type=Path, required=True, help="TSV with text, split (train, test) and a column a task")
    parser.add_argument("--task", action="append", required=True)
    parser.add_argument("--name", default="feedback", help="what the keys of the results begin with")
    parser.add_argument("--freezes", default="none,lower:3,backbone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--head-learning-rate", type=float, default=1e-3)
    parser.add_argument("--groups", type=int, default=1, help="groups of rows by length")
    parser.add_argument("--max-steps", type=int, help="take the time of so many steps alone")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    tasks, splits = read(args)
    steps = f", {args.max_steps} steps" if args.max_steps else ""
    for seed in range(1, args.seeds + 1):
        for freeze in args.freezes.split(","):
            key = f"{args.name} {freeze} seed {seed}{steps}"
            if key not in results:
                results[key] = run(freeze, seed, tasks, splits, args)
                args.out.write_text(json.dumps(results, indent=1) + "\n")
            print(key, results[key], flush=True)


if __name__ == "__main__":
    main()
