#!/usr/bin/env python3
"""Accuracy on the demo data for every freeze, over several seeds, and what the freezes protect.

usage: benches/accuracy.py FROSTLINE_BINARY DEMO_DIR OUT.json [--seeds 3] [--sets feedback,icd] [--protects]
                           [--hold-out] [--max-steps N]
       benches/accuracy.py --tables OUT.json [--peer PYTORCH.json ...]

Trains with 3 epochs, learning rate 5e-5, heads 1e-3, batches of 32, a linear schedule with 10 % warm-up. A freeze of a
head starts from a head that was trained with the backbone frozen. --protects also measures how far each part moved, and
what the encoder forgot of the other set. --hold-out chooses a head learning rate for the frozen backbone on a hold-out
of the training rows, and trains with it on all of them. --max-steps N takes the time of N steps alone. Results are
written after each run, and runs that are there already are not repeated.

--tables prints what was written as Markdown, beside results of pytorch/train.py.
"""

import argparse
import csv
import json
import pathlib
import statistics
import subprocess
import tempfile

SETS = {
    "feedback": {
        "file": "feedback_products.tsv",
        "tasks": ["topic", "sentiment"],
        "freezes": ["none", "lower:3", "backbone", "head:topic"],
        "other": "chapter=icd10_chapters.tsv:text:label",
    },
    "icd": {
        "file": "icd10_chapters.tsv",
        "tasks": ["label"],
        "freezes": ["none", "lower:3", "backbone"],
        "other": "sentiment=feedback_products.tsv:text:sentiment",
    },
}
HEAD_RATES = ["1e-3", "3e-3", "1e-2", "3e-2"]


class Runner:
    """Runs of one binary on the demo's files, each once."""

    def __init__(self, args):
        self.args = args
        self.results = json.loads(args.out.read_text()) if args.out.exists() else {}

    def run(self, key, path, tasks, freeze, seed, head_rate="1e-3", extra=()):
        """One result by its key; a run is made if there is none, or none with all that is asked for."""
        if self.args.max_steps:
            key += f", {self.args.max_steps} steps"
        is_whole = key in self.results and ("--drift" not in extra or "drift" in self.results[key])
        if not is_whole:
            with tempfile.TemporaryDirectory() as scratch:
                model = self.args.demo / "minilm"
                if "head:" in freeze:
                    self.train(model, f"{scratch}/heads", path, tasks, "backbone", seed, head_rate, self.limit())
                    model = f"{scratch}/heads"
                options = [*extra, *self.limit()]
                done = self.train(model, f"{scratch}/model", path, tasks, freeze, seed, head_rate, options)
            kept = {"eval": done["eval"], "seconds": done["train_runtime"], "steps": done["steps"]}
            for name in ("gap", "drift", "forgetting"):
                if done.get(name) is not None:
                    kept[name] = done[name]
            self.results[key] = kept
            self.args.out.write_text(json.dumps(self.results, indent=1) + "\n")
            print(key, json.dumps(kept["eval"]), flush=True)
        return self.results[key]

    def limit(self):
        return ["--max-steps", str(self.args.max_steps)] if self.args.max_steps else []

    def train(self, model, output, path, tasks, freeze, seed, head_rate, options):
        """`frostline train`; returns its JSON document."""
        command = [self.args.binary, "train", "--model", str(model), "--freeze", freeze, "--seed", str(seed)]
        command += ["--learning-rate", "5e-5", "--head-learning-rate", head_rate, "--num-train-epochs", "3"]
        command += ["--batch-size", "32", "--warmup-steps", "0.1", "--json", "--output", str(output), *options]
        for task in tasks:
            command += ["--task", f"{task}={path}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        return json.loads(done.stdout)


def training_rows(path, scratch):
    """A copy of a TSV with its training rows alone and no split column."""
    target = pathlib.Path(scratch) / path.name
    with open(path, newline="", encoding="utf-8") as source, open(target, "w", encoding="utf-8") as out:
        rows = csv.reader(source, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = next(rows)
        split = header.index("split")
        for row in [header] + [row for row in rows if row[split] == "train"]:
            out.write("\t".join(row[:split] + row[split + 1 :]) + "\n")
    return target


def measure(args):
    runner = Runner(args)
    for seed in range(1, args.seeds + 1):
        for name in args.sets.split(","):
            chosen = SETS[name]
            path, other = args.demo / chosen["file"], chosen["other"].replace("=", f"={args.demo}/", 1)
            extra = ["--drift", "--forgetting", other] if args.protects else []
            for freeze in chosen["freezes"]:
                runner.run(f"{name} {freeze} seed {seed}", path, chosen["tasks"], freeze, seed, extra=extra)
    if args.hold_out:
        for name in args.sets.split(","):
            hold_out(runner, name)


def hold_out(runner, name):
    tasks, path = SETS[name]["tasks"], runner.args.demo / SETS[name]["file"]
    with tempfile.TemporaryDirectory() as scratch:
        rows = training_rows(path, scratch)
        scores = {}
        for rate in HEAD_RATES:
            key = f"{name} backbone hold-out, head rate {rate}"
            quality = runner.run(key, rows, tasks, "backbone", 1, rate, ["--holdout", "0.15"])["eval"]
            scores[rate] = statistics.mean(quality[task]["accuracy"] for task in tasks)
    best = max(scores, key=scores.get)
    runner.run(f"{name} backbone, head rate {best}", path, tasks, "backbone", 1, best)


def runs_of(results, name, freeze):
    """The results of all seeds."""
    return [one for key, one in sorted(results.items()) if key.startswith(f"{name} {freeze} seed ") and "," not in key]


def mean(values):
    return statistics.mean(values)


def score(runs, task):
    """`.816 (.803)`: accuracy and macro-F1, means over the seeds."""
    if not runs:
        return "-"
    accuracy, f1 = (mean(one["eval"][task][metric] for one in runs) for metric in ("accuracy", "macro_f1"))
    spread = max(one["eval"][task]["accuracy"] for one in runs) - min(one["eval"][task]["accuracy"] for one in runs)
    text = f"{accuracy:.3f} ({f1:.3f}) ±{spread / 2:.3f}"
    return text if len(runs) == 3 else f"{text}, seeds: {len(runs)}"


def tables(args):
    results = json.loads(args.tables.read_text())
    peers = {}
    for path in args.peer:
        peers.update(json.loads(path.read_text()))
    differences = []
    for name, chosen in SETS.items():
        tasks = chosen["tasks"]
        print(f"\n| {name} | " + " | ".join(f"{task} | PyTorch" for task in tasks) + " |")
        print("|---" * (1 + 2 * len(tasks)) + "|")
        for freeze in chosen["freezes"]:
            ours, theirs = runs_of(results, name, freeze), runs_of(peers, name, freeze)
            cells = [cell for task in tasks for cell in (score(ours, task), score(theirs, task))]
            print(f"| {freeze} | " + " | ".join(cells) + " |")
            if ours and theirs:
                for task in tasks:
                    of = lambda runs: mean(one["eval"][task]["accuracy"] for one in runs)  # noqa: E731
                    differences.append(of(ours) - of(theirs))
        protects(results, name, chosen)
    if differences:
        print(f"\nfrostline - PyTorch, mean of {len(differences)}: {100 * mean(differences):+.2f} points of accuracy")


def protects(results, name, chosen):
    """What the freezes of one set protect, where that was measured."""
    rows = {freeze: runs_of(results, name, freeze) for freeze in chosen["freezes"]}
    rows = {freeze: [one for one in runs if "drift" in one] for freeze, runs in rows.items()}
    rows = {freeze: runs for freeze, runs in rows.items() if runs}
    if not rows:
        return
    print(f"\n| {name}, seeds: {min(map(len, rows.values()))} | probe on {chosen['other'].split('=')[0]}, before | after | change | last layer's CKA | "
          "relative change of weights | train - test |")
    print("|---" * 7 + "|")
    for freeze, runs in rows.items():
        before, after = (mean(one["forgetting"][0][when]["accuracy"] for one in runs) for when in ("before", "after"))
        layers = [[part for part in one["drift"] if part["group"].startswith("layer")] for one in runs]
        cka = mean(parts[-1]["cka"] for parts in layers)
        moved = mean(mean(part["weights"] for part in parts) for parts in layers)
        gap = mean(mean(task["gap"] for task in one["gap"].values()) for one in runs)
        print(f"| {freeze} | {before:.3f} | {after:.3f} | {after - before:+.3f} | {cka:.3f} | {moved:.4f} | {gap:+.3f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?")
    parser.add_argument("demo", type=pathlib.Path, nargs="?")
    parser.add_argument("out", type=pathlib.Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", default="feedback,icd")
    parser.add_argument("--protects", action="store_true")
    parser.add_argument("--hold-out", action="store_true")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--tables", type=pathlib.Path)
    parser.add_argument("--peer", type=pathlib.Path, action="append", default=[])
    args = parser.parse_args()
    if args.tables:
        tables(args)
    elif args.out is None:
        parser.error("give FROSTLINE_BINARY DEMO_DIR OUT.json, or --tables OUT.json")
    else:
        measure(args)


if __name__ == "__main__":
    main()
