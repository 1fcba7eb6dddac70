"""Writes tests/golden from PyTorch, and holds a frostline binary against PyTorch.

    python make_golden.py DIR                         writes DIR/pytorch (this folder: `.`)
    python make_golden.py --verify BINARY [DIR]       runs every golden run, prints its worst error
    python make_golden.py --random N --seed S --verify BINARY
                                                      N fresh random models, batches and freezes
    python make_golden.py --real MODEL --verify BINARY
                                                      published weights, every scenario
    python make_golden.py --minilm MODEL [DIR]        writes DIR/minilm from all-MiniLM-L6-v2

Needs torch, transformers and safetensors. Expected values are computed in f64 and stored as f32.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cases import entry, golden, make_batch, random_case, write_folder
from minilm import write_minilm
from reference import ZERO_IN_THEORY, Case, Run, compare, step
from tokenizer import write_tokenizer

HERE = Path(__file__).parent

# tests/pytorch.rs allows bf16 twice autocast's error or 2e-2, whichever is more: smaller errors decide nothing.
AUTOCAST_FLOOR = 1e-2


def write_golden(root: Path) -> None:
    index = []
    for case, runs in golden():
        folder = root / "pytorch" / case.name
        write_folder(case, folder)
        entries = []
        for number, run in enumerate(runs):
            expected = step(case, run)
            # The same run in f32 shows what rounding alone does to this case.
            worst, where, faults = compare(expected, step(case, run, torch.float32), case, run)
            print(f"{case.name:20} {run.freeze:45} {run.steps} f32 against f64: {worst:.1e} {where}")
            assert not faults, faults
            file = f"expected-{number:02}.safetensors"
            save_file(expected, folder / file)
            entries.append(entry(case, run, file, autocast_errors(case, run, expected)))
        index.append({"case": case.name, "pooling": case.pooling, "tasks": case.tasks, "runs": entries})
    write_tokenizer(root / "pytorch" / "bert-mean")
    (root / "pytorch" / "cases.json").write_text(json.dumps(index, indent=1) + "\n")


def autocast_errors(case: Case, run: Run, expected: dict) -> dict[str, float]:
    """The relative errors of PyTorch's bf16 autocast, for the tensors where they exceed AUTOCAST_FLOOR.

    Of one step: parameters after several are where AdamW's division by small gradients has taken them."""
    if run.steps > 1:
        return {}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = step(case, run, torch.float32)
    largest = max((float(v.norm()) for n, v in expected.items() if n.startswith("grad.")), default=0.0)
    errors = {}
    for name, value in sorted(expected.items()):
        if name.startswith("grad.") and float(value.norm()) <= ZERO_IN_THEORY * largest:
            continue
        error = relative_error(rounded[name], value)
        if error > AUTOCAST_FLOOR:
            errors[name] = round(error, 4)
    return errors


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    difference, norm = float((actual.double() - expected.double()).norm()), float(expected.double().norm())
    return difference / norm if norm else difference


def run_binary(binary: str, folder: Path, case: Case, run: Run, device: str, dump: Path) -> dict | str:
    """What the binary dumped, or what it said instead."""
    tasks = [argument for task, n in case.tasks.items() for argument in ("--task", f"{task}={n}")]
    command = [binary, "step", "--model", folder, "--batch", folder / "batch.safetensors", *tasks, "--pooling",
               case.pooling, "--freeze", run.freeze, "--steps", run.steps, "--learning-rate", run.learning_rate,
               "--weight-decay", run.weight_decay, "--max-grad-norm", run.max_grad_norm, "--device", device,
               "--dtype", "f32", "--dump", dump]
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode != 0:
        return f"exit status {result.returncode}: {result.stderr.strip()}"
    return load_file(dump)


def verify(binary: str, device: str, items) -> int:
    """Runs (folder, case, run, expected) one by one and prints the worst error of each."""
    n_failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        dump = Path(scratch) / "out.safetensors"
        for folder, case, run, expected in items:
            dump.unlink(missing_ok=True)
            actual = run_binary(binary, folder, case, run, device, dump)
            worst, where, faults = (float("nan"), "-", [actual]) if isinstance(actual, str) else compare(
                expected, actual, case, run)
            n_failed += bool(faults)
            print(f"{'FAIL' if faults else 'ok  '} {worst:.1e} {case.name:20} {run.freeze:45} {run.steps} {where}")
            if faults:
                print(f"     {case.config}\n     {run}, pooling {case.pooling}, tasks {case.tasks}")
            for fault in faults:
                print("    ", fault)
    print(f"{n_failed} runs failed")
    return 1 if n_failed else 0


def golden_items(root: Path):
    """The committed dumps; the cases themselves are rebuilt from their seeds."""
    cases = {case.name: case for case, _ in golden()}
    for item in json.loads((root / "pytorch" / "cases.json").read_text()):
        folder = root / "pytorch" / item["case"]
        for fields in item["runs"]:
            expected = load_file(folder / fields.pop("expected"))
            fields.pop("autocast")
            yield folder, cases[item["case"]], Run(**fields), expected


def random_items(n: int, seed: int, scratch: Path):
    for index in range(n):
        # One generator per case: a failing case can be made again by its number alone.
        case, run = random_case(random.Random(f"{seed}-{index}"), index)
        folder = scratch / case.name
        write_folder(case, folder)
        expected = step(case, run)
        # A model whose rounding alone breaks the rule says nothing about the binary.
        if compare(expected, step(case, run, torch.float32), case, run)[2]:
            print(f"skip         {case.name:20} {run.freeze:45} ill-conditioned: f32 in PyTorch breaks the rule too")
            continue
        yield folder, case, run, expected


def real_items(model: Path, scratch: Path):
    config = json.loads((model / "config.json").read_text())
    tensors = load_file(model / "model.safetensors")
    tasks = {"topic": 5, "sentiment": 3}
    generator = torch.Generator().manual_seed(0)
    for task, n in tasks.items():
        tensors[f"heads.{task}.weight"] = 0.02 * torch.randn(n, config["hidden_size"], generator=generator)
        tensors[f"heads.{task}.bias"] = torch.zeros(n)
    batch = make_batch(config, [64, 3, 17, 40, 1, 128], 128, tasks, random.Random(0), integers=torch.int64,
                       token_types=True)
    case = Case(model.name, config, tensors, batch, "mean", tasks)
    folder = scratch / "real"
    write_folder(case, folder)
    for freeze in ("none", "lower:3", "backbone", "head:topic", "all", "all+keep:*.bias+keep:heads.*"):
        run = Run(freeze, steps=2)
        yield folder, case, run, step(case, run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", nargs="?", type=Path, default=HERE, help="the golden folder (default: this one)")
    parser.add_argument("--verify", metavar="BINARY", help="compare this binary instead of writing")
    parser.add_argument("--device", default="cpu", help="passed on to the binary")
    parser.add_argument("--random", metavar="N", type=int, help="with --verify: N random cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", metavar="MODEL", type=Path, help="with --verify: published weights")
    parser.add_argument("--minilm", metavar="MODEL", type=Path, help="write the MiniLM dump from this folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.minilm:
        write_minilm(args.minilm, args.dir / "minilm")
    elif args.verify:
        with tempfile.TemporaryDirectory() as scratch:
            if args.random is not None:
                items = random_items(args.random, args.seed, Path(scratch))
            elif args.real:
                items = real_items(args.real, Path(scratch))
            else:
                items = golden_items(args.dir)
            return verify(args.verify, args.device, items)
    elif args.random is not None or args.real:
        parser.error("--random and --real need --verify")
    else:
        write_golden(args.dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
