#!/usr/bin/env python3
"""Accuracy on the demo data for every freeze, over several seeds.

usage: benches/accuracy.py FROSTLINE_BINARY DEMO_DIR OUT.json [--seeds 3] [--sets feedback,icd]

Trains with 3 epochs, learning rate 5e-5, heads 1e-3, batches of 32, a linear schedule with 10 % warm-up;
then chooses a head learning rate for the frozen backbone on a hold-out of the training rows, and trains with
it on all of them. Results are written after each run, and runs that are there already are not repeated.
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
        "freezes": ["none", "lower:1", "lower:3", "lower:5", "backbone"],
    },
    "icd": {
        "file": "icd10_chapters.tsv",
        "tasks": ["label"],
        "freezes": ["none", "lower:1", "lower:3", "lower:5", "backbone"],
    },
}
HEAD_RATES = ["1e-3", "3e-3", "1e-2", "3e-2"]


def train(binary, demo, file, tasks, freeze, seed, head_rate, extra=()):
    """One run of `frostline train`; returns its JSON document."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [binary, "train", "--model", str(demo / "minilm"), "--freeze", freeze, "--seed", str(seed)]
        command += ["--learning-rate", "5e-5", "--head-learning-rate", head_rate, "--num-train-epochs", "3"]
        command += ["--batch-size", "32", "--warmup-steps", "0.1", "--json", "--output", scratch + "/model", *extra]
        for task in tasks:
            command += ["--task", f"{task}={file}"]
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("demo", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", default="feedback,icd")
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}

    def run(key, *arguments, **options):
        if key not in results:
            document = train(args.binary, args.demo, *arguments, **options)
            results[key] = {"eval": document["eval"], "seconds": document["train_runtime"]}
            args.out.write_text(json.dumps(results, indent=1) + "\n")
        return results[key]["eval"]

    for name in args.sets.split(","):
        chosen = SETS[name]
        path, tasks = args.demo / chosen["file"], chosen["tasks"]
        for freeze in chosen["freezes"]:
            runs = [
                run(f"{name} {freeze} seed {seed}", path, tasks, freeze, seed, "1e-3")
                for seed in range(1, args.seeds + 1)
            ]
            for task in tasks:
                for metric in ("accuracy", "macro_f1"):
                    values = [one[task][metric] for one in runs]
                    spread = max(values) - min(values)
                    print(f"{name} {freeze} {task} {metric}: {statistics.mean(values):.4f} (spread {spread:.4f})")
        with tempfile.TemporaryDirectory() as scratch:
            rows = training_rows(path, scratch)
            scores = {}
            for rate in HEAD_RATES:
                key = f"{name} backbone hold-out, head rate {rate}"
                quality = run(key, rows, tasks, "backbone", 1, rate, extra=["--holdout", "0.15"])
                scores[rate] = statistics.mean(quality[task]["accuracy"] for task in tasks)
        best = max(scores, key=scores.get)
        quality = run(f"{name} backbone, head rate {best}", path, tasks, "backbone", 1, best)
        print(f"{name} backbone with the chosen head rate {best}: {quality}", flush=True)


if __name__ == "__main__":
    main()
