#!/usr/bin/env python3
"""frostline beside PyTorch, in turn, on the same machine, model, tokens and threads.

usage: benches/compare.py FROSTLINE_BINARY OUT_DIR [--python PYTHON] [--demo DIR] [--repeats 3] [--rounds 6]

Runs each workload REPEATS times, the two programs one after the other, and pairs their medians repeat by repeat.
Writes OUT_DIR/raw.json (every document of both) and OUT_DIR/summary.md. PYTHON needs torch and transformers.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile

HERE = pathlib.Path(__file__).parent
TASKS = ["--task", "topic=5", "--task", "sentiment=3"]


def run(command, places):
    """What the command prints, with the names of `places` in the place of this machine's paths: a result is to be
    read, and repeated, elsewhere."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command}\n{done.stderr}")
    printed = done.stdout
    for path, name in places.items():
        printed = printed.replace(path, name)
    return json.loads(printed)


def workloads(demo):
    synthetic = lambda model, size, length: [*model, *TASKS, "--batch-size", size, "--max-length", length]
    file = demo / "feedback_products.tsv"
    real = ["--model", demo / "minilm", "--task", f"topic={file}", "--task", f"sentiment={file}", "--batch-size", 32]
    return {
        "BERT-base 8x128": (synthetic(["--arch", "bert-base"], 8, 128), "none,lower:6,backbone,all", None),
        "MiniLM 32x64": (synthetic(["--model", demo / "minilm"], 32, 64), "none,lower:3,backbone,all", None),
        "MiniLM, 32 real texts": (
            real,
            "none,lower:3,backbone,all",
            ["--model", demo / "minilm", "--task", "topic=4", "--task", "sentiment=3"],
        ),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--python", default="python3")
    parser.add_argument("--demo", type=pathlib.Path, default=HERE.parent / "demo")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="workloads whose name contains this")
    args = parser.parse_args()
    common = ["--rounds", args.rounds, "--warmup", 2, "--threads", args.threads, "--json"]
    places = {args.binary: "frostline", str(args.demo): "demo"}
    raw, lines = {}, []
    for name, (ours, scenarios, peer) in workloads(args.demo).items():
        if args.only and args.only not in name:
            continue
        raw[name] = []
        for _ in range(args.repeats):
            with tempfile.TemporaryDirectory() as scratch:
                command = [args.binary, "bench", *ours, "--scenarios", scenarios, "--device", "cpu", *common]
                ours_document = run(command, places)
                theirs = peer or ours
                if peer:
                    lengths = pathlib.Path(scratch) / "lengths.json"
                    lengths.write_text(json.dumps(ours_document["shapes"][0]["batch_lengths"]))
                    theirs = [*peer, "--lengths", lengths]
                script = [args.python, HERE / "pytorch" / "freeze.py", *theirs, "--scenarios", scenarios, *common]
                raw[name].append({"frostline": ours_document, "pytorch": run(script, places)})
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "raw.json").write_text(json.dumps(raw) + "\n")
        lines += summary(name, raw[name])
        (args.out / "summary.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def summary(name, repeats):
    def medians(program):
        documents = [repeat[program]["scenarios"] for repeat in repeats]
        freezes = [scenario["freeze"] for scenario in documents[0]]
        return {
            freeze: [scenarios[at]["step_ms"]["median"] for scenarios in documents]
            for at, freeze in enumerate(freezes)
        }

    ours, theirs = medians("frostline"), medians("pytorch")
    lines = [
        f"### {name}",
        "",
        "| freeze | frostline ms | PyTorch ms | ratio, median (all repeats) |",
        "|---|---|---|---|",
    ]
    for freeze, times in ours.items():
        ratios = [peer / own for peer, own in zip(theirs[freeze], times)]
        every = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(
            f"| {freeze} | {statistics.median(times):.0f} | {statistics.median(theirs[freeze]):.0f} "
            f"| {statistics.median(ratios):.2f} ({every}) |"
        )
    return lines + [""]


if __name__ == "__main__":
    main()
