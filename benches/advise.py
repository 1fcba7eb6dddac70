#!/usr/bin/env python3
"""How good `frostline advise` is: its sweeps, their forecasts, and whether its scores foretell what training gives.

usage: benches/advise.py FROSTLINE_BINARY DATA_DIR OUT_DIR [--only NAME,...]
       benches/advise.py --tables OUT_DIR

DATA_DIR is what `scripts/fetch_demo.py --all` writes. Every run is one document of `advise --export-json` in OUT_DIR, or
of `bench --export-json` for the steps of all depths, measured in turns; those that are there already are not repeated, so
that a run that was stopped goes on. --only names some of the runs.

--tables prints as Markdown what the runs say: forecasts beside what was measured, the sweeps, steps cached and not beside
what the plan predicts, and rank correlations of scores with swept accuracy, within each data set (over depths) and over all
tasks (at one depth).
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess

FEEDBACK = ["topic=feedback_products.tsv", "sentiment=feedback_products.tsv"]
ICD = ["chapter=icd10_chapters.tsv:text:label"]
HPO = ["organ=hpo_organs.tsv:text:label"]
TWEETS = ["tweet=tweets.tsv:text:label"]

# Name: tasks, options. Full sweeps of one seed tell what every depth gives; a seed more would cost an hour.
RUNS = {
    "feedback": (FEEDBACK, ["--prove"]),
    "icd": (ICD, ["--prove"]),
    "feedback-full": (FEEDBACK, ["--prove=full", "--seeds", "1"]),
    "feedback-plain": (FEEDBACK, ["--prove=full", "--seeds", "1", "--cache", "off"]),
    "icd-full": (ICD, ["--prove=full", "--seeds", "1"]),
    "hpo-full": (HPO, ["--prove=full", "--seeds", "1", "--num-train-epochs", "2"]),
    "tweets-full": (TWEETS, ["--prove=full", "--seeds", "1", "--num-train-epochs", "2"]),
}
# Steps of all depths in turns, cached and not, so that whatever the machine does hits all alike.
STEPS = {"feedback-steps": FEEDBACK, "icd-steps": ICD}
DEPTHS = ["none", "lower:1", "lower:2", "lower:3", "lower:4", "lower:5", "backbone"]
# The full sweeps that calibrate, one a data set.
CALIBRATION = ["feedback-full", "icd-full", "hpo-full", "tweets-full"]
SCORES = {"probe accuracy": "accuracy", "LogME": "logme", "H-score": "h_score"}


def run(args):
    """Makes the runs that are not there."""
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only or [*STEPS, *RUNS]:
        path = args.out / f"{name}.json"
        if path.exists():
            continue
        if name in STEPS:
            command, tasks = "bench", STEPS[name]
            options = ["--scenarios", ",".join([*DEPTHS, "all"]), "--cached", "--rounds", "40"]
        else:
            command = "advise"
            tasks, options = RUNS[name]
        # What is there under its own name is whole.
        part = path.with_suffix(".part")
        line = [args.binary, command, "--model", str(args.data / "minilm"), "--export-json", str(part), *options]
        for task in tasks:
            task_name, file = task.split("=")
            line += ["--task", f"{task_name}={args.data / file}"]
        print(f"{name}: {command} {' '.join(options)}", flush=True)
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
        document = json.loads(part.read_text())
        drop_texts(document)
        path.write_text(json.dumps(document, indent=1) + "\n")
        part.unlink()


def drop_texts(document):
    """Takes the texts of the data out of a document: they are other people's."""
    for model in document.get("models", []):
        for task in model["tasks"]:
            for suspect in task["noise"]["suspects"]:
                del suspect["text"]


def load(out, name):
    """The model part of a run's document, or None."""
    path = out / f"{name}.json"
    return json.loads(path.read_text())["models"][0] if path.exists() else None


def ranks(values):
    """Ranks from 1, equal values sharing the mean of theirs."""
    order = sorted(range(len(values)), key=lambda at: values[at])
    of = [0.0] * len(values)
    begin = 0
    while begin < len(order):
        end = begin
        while end < len(order) and values[order[end]] == values[order[begin]]:
            end += 1
        for at in order[begin:end]:
            of[at] = (begin + 1 + end) / 2
        begin = end
    return of


def spearman(a, b):
    """Spearman's rank correlation, None where one list never changes or is shorter than three."""
    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return statistics.correlation(ranks(a), ranks(b))


def swept(model):
    """Test accuracy by task and freeze, at full length: the mean over the seeds."""
    sweep, found = model["sweep"], {}
    for trial in sweep["trials"]:
        if trial["n_steps"] == sweep["n_steps"]:
            for task in trial["tasks"]:
                found.setdefault(task["task"], {}).setdefault(trial["freeze"], []).append(task["accuracy"])
    return {task: {freeze: statistics.mean(all_) for freeze, all_ in of.items()} for task, of in found.items()}


def table(header, rows):
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def show(value, form="{:.3f}"):
    return "-" if value is None or (isinstance(value, float) and math.isnan(value)) else form.format(value)


def forecasts(out):
    """What sweeps should take and took."""
    rows = []
    for name in RUNS:
        model = load(out, name)
        if model is None:
            continue
        sweep = model["sweep"]
        forecast = sweep["forecast"]
        taken = sweep["trial_seconds"] + sweep["fill_seconds"]
        low, high = forecast["seconds"]
        trials = sweep["trial_seconds"] / sweep["predicted_trial_seconds"]
        rows.append([
            name,
            len(sweep["trials"]),
            f"{model['seconds']:.0f}",
            f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}",
            f"{taken:.0f}",
            f"{trials:.2f}",
            f"{forecast['plain_seconds']:.0f}",
            f"{forecast['plain_seconds'] / taken:.1f}",
        ])
    header = ["run", "trainings", "advice alone, s", "sweep predicted, s", "taken, s", "trainings: taken / predicted",
              "every depth and seed, uncached: predicted, s", "that / taken"]
    return table(header, rows)


def steps(out):
    """Steps of all depths, uncached and cached: as measured, and as predicted from the plan, a step that trains everything
    and a forward pass alone."""
    text = ""
    for name in STEPS:
        path = out / f"{name}.json"
        if not path.exists():
            continue
        scenarios = {one["freeze"]: one for one in json.loads(path.read_text())["scenarios"]}
        none, forward = scenarios["none"], scenarios["all"]
        pace = {phase: none["phase_ms"][phase] / none["predicted_ms"][phase] for phase in none["phase_ms"]}
        forward_pace = forward["phase_ms"]["forward"] / forward["predicted_ms"]["forward"]

        def predicted(one, cached):
            """A step by its plan; what lies below the frost line is a forward pass that keeps nothing."""
            below = one["predicted_ms"]["forward"] - cached["predicted_ms"]["forward"]
            whole = sum(pace[phase] * one["predicted_ms"][phase] for phase in pace)
            return whole + (forward_pace - pace["forward"]) * below

        columns = ["predicted", "measured", "cached: predicted", "cached: measured"]
        rows = []
        for freeze in DEPTHS:
            plain = scenarios[freeze]
            cached = scenarios.get(f"{freeze} cached", plain)
            rows.append([predicted(plain, cached), plain["step_ms"]["median"],
                         predicted(cached, cached), cached["step_ms"]["median"]])
        sums = [sum(column) for column in zip(*rows)]
        cells = [[name_, *(f"{ms:.1f}" for ms in row)] for name_, row in zip([*DEPTHS, "sum"], [*rows, sums])]
        text += f"\n{name}: milliseconds of a step\n\n" + table(["freeze", *columns], cells)
        # `none` has no cache and is the same on both sides; the second ratios leave it out.
        frozen = [sum_ - ms for sum_, ms in zip(sums, rows[DEPTHS.index("none")])]
        text += (f"\nMeasured over predicted: uncached {sums[1] / sums[0]:.2f}, cached {sums[3] / sums[2]:.2f}. "
                 f"Uncached over cached: predicted {sums[0] / sums[2]:.2f}, measured {sums[1] / sums[3]:.2f}; without "
                 f"`none`, predicted {frozen[0] / frozen[2]:.2f}, measured {frozen[1] / frozen[3]:.2f}.\n")
    return text


def depths(out):
    """Test accuracy of every depth."""
    text = ""
    for name in RUNS:
        model = load(out, name)
        if model is None:
            continue
        sweep, of = model["sweep"], swept(model)
        rows = []
        for depth in sweep["verdict"]["depths"]:
            freeze = depth["freeze"]
            mine = [trial for trial in sweep["trials"] if trial["freeze"] == freeze]
            marks = [word for word, is_it in (
                ("recommended by the scores", freeze == model["advised"]),
                ("best", freeze == sweep["verdict"]["winner"]),
                ("chosen", freeze == sweep["verdict"]["cheapest"]),
            ) if is_it]
            short = max(trial["n_steps"] for trial in mine)
            cells = [show(of[task].get(freeze)) for task in of]
            rows.append([freeze, *cells, f"{short} steps, {depth['n_full']} full",
                         f"{statistics.mean(trial['seconds'] for trial in mine if trial['n_steps'] == short):.1f}",
                         ", ".join(marks)])
        text += f"\n{name}\n\n" + table(["freeze", *of, "trainings", "seconds of one", ""], rows)
    return text


def calibration(out):
    """Whether scores foretell what training gives."""
    within, tasks = [], []
    for name in CALIBRATION:
        model = load(out, name)
        if model is None:
            continue
        for one in model["agreement"]:
            within.append((one["task"], one["score"], one["rank_correlation"]))
        n_layers, pooling = model["n_layers"], "mean" if model["pooling"] == "mean" else "cls"
        for task in model["tasks"]:
            curve = task["curve"]
            points = {p["layer"]: p for p in curve["points"] if p["pooling"] == pooling}
            tasks.append((curve["task"], n_layers, points, swept(model)[curve["task"]]))
    text = "Within a data set, over depths: the score behind the frozen layers, and the accuracy at that depth\n\n"
    names = list(dict.fromkeys(task for task, _, _ in within))
    of = {(task, score): value for task, score, value in within}
    rows = [[score, *(show(of.get((task, score)), "{:+.2f}") for task in names)] for score in SCORES]
    text += table(["score", *names], rows)
    text += "\nOver tasks: the score behind the last layer\n\n"
    rows = []
    for score, key in SCORES.items():
        last = [points[n][key] for _, n, points, _ in tasks]
        frozen = [accuracy["backbone"] for _, _, _, accuracy in tasks]
        gain = [accuracy["none"] - accuracy["backbone"] for _, _, _, accuracy in tasks]
        rows.append([score, show(spearman(last, frozen), "{:+.2f}"), show(spearman(last, gain), "{:+.2f}")])
    text += table(["score", f"with accuracy of backbone ({len(tasks)} tasks)", "with none - backbone"], rows)
    text += "\nThe rule of thumb: expected loss of each depth, and the loss measured (points against none)\n\n"
    pairs, rows = [], []
    for name, n, points, accuracy in tasks:
        for freeze, value in accuracy.items():
            frozen = {"backbone": n, "none": 0}.get(freeze)
            frozen = int(freeze.split(":")[1]) if frozen is None else frozen
            unit = (1 - points[n]["accuracy"]) * (frozen / n) ** 2
            if frozen:
                pairs.append((unit, accuracy["none"] - value))
                rows.append([name, freeze, f"{25 * unit:.1f}", f"{100 * (accuracy['none'] - value):.1f}"])
    text += table(["task", "freeze", "expected", "measured"], rows)
    if pairs:
        share = sum(unit * loss for unit, loss in pairs) / sum(unit**2 for unit, _ in pairs)
        error = statistics.mean(abs(0.25 * unit - loss) for unit, loss in pairs)
        correlation = spearman([unit for unit, _ in pairs], [loss for _, loss in pairs])
        text += (f"\nLeast squares: training wins back {share:.2f} of the frozen probe's errors (the rule says 0.25). "
                 f"Mean absolute error of the rule {100 * error:.1f} points; rank correlation of expected and measured "
                 f"{show(correlation, '{:+.2f}')} over {len(pairs)} pairs of task and depth.\n")
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=pathlib.Path, metavar="OUT_DIR")
    parser.add_argument("binary", nargs="?")
    parser.add_argument("data", nargs="?", type=pathlib.Path)
    parser.add_argument("out", nargs="?", type=pathlib.Path)
    parser.add_argument("--only", type=lambda text: text.split(","))
    args = parser.parse_args()
    if args.tables:
        print("## Sweeps\n\n" + forecasts(args.tables) + depths(args.tables))
        print("## Steps\n" + steps(args.tables))
        print("## Calibration\n\n" + calibration(args.tables))
        return
    if args.out is None:
        parser.error("give FROSTLINE_BINARY DATA_DIR OUT_DIR, or --tables OUT_DIR")
    unknown = [name for name in args.only or [] if name not in STEPS and name not in RUNS]
    if unknown:
        parser.error(f"--only {','.join(unknown)}: the runs are {', '.join([*STEPS, *RUNS])}")
    run(args)


if __name__ == "__main__":
    main()
