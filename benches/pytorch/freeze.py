"""The peer: the freeze scenarios of `frostline bench`, as a careful PyTorch user would run them.

    python freeze.py --arch bert-base --task topic=5 --task sentiment=3 --scenarios none,lower:6,backbone,all --json
    python freeze.py --model DIR --lengths lengths.json --device cuda --dtype bf16 --compile

Frozen parameters have requires_grad=False, so autograd itself prunes the backward pass below the
lowest trained tensor; the optimizer holds trained parameters only; a model frozen whole runs in eval
mode under inference_mode. Attention is SDPA, AdamW is fused, rounds are interleaved over scenarios.
Dropout is what the config says (`--dropout 0` to leave it out) in all of the model, frozen or not,
as after model.train(). Batches of unequal lengths are padded to their longest row.
"""

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "golden"))
from reference import takes_decay, trained_names  # noqa: E402

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
BERT = {"model_type": "bert", "vocab_size": 30522}
ROBERTA = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1,
           "layer_norm_eps": 1e-5}
ARCHS = {
    "bert-base": BERT | BASE,
    "bert-large": BERT | LARGE,
    "roberta-base": ROBERTA | BASE,
    "roberta-large": ROBERTA | LARGE,
    "distilbert-base": {"model_type": "distilbert", "vocab_size": 30522, "dim": 768, "n_layers": 6, "n_heads": 12,
                        "hidden_dim": 3072},
    "minilm-l6": BERT | {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
                         "intermediate_size": 1536},
}
PHASES = ("forward", "backward", "optimizer")


class Model(nn.Module):
    """An encoder, a pooling and one linear head per task; its output is the sum of the losses."""

    def __init__(self, encoder: nn.Module, pooling: str, tasks: dict[str, int]):
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        width = encoder.config.hidden_size
        self.heads = nn.ModuleDict({task: nn.Linear(width, n) for task, n in tasks.items()})

    def forward(self, input_ids, attention_mask, labels):
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        if self.pooling == "pooler":
            pooled = output.pooler_output
        elif self.pooling == "cls":
            pooled = output.last_hidden_state[:, 0]
        else:
            mask = attention_mask[:, :, None].to(output.last_hidden_state.dtype)
            pooled = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
        losses = [nn.functional.cross_entropy(head(pooled), labels[task]) for task, head in self.heads.items()]
        return sum(losses)


def build_model(args) -> Model:
    if args.model:
        config = AutoConfig.from_pretrained(args.model)
    else:
        fields = dict(ARCHS[args.arch])
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    if args.dropout is not None:
        for field in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
            if hasattr(config, field):
                setattr(config, field, args.dropout)
    # A pooler that nothing reads is not built: it would be computed all the same.
    options = {} if config.model_type == "distilbert" else {"add_pooling_layer": args.pooling == "pooler"}
    if args.model:
        encoder = AutoModel.from_pretrained(args.model, config=config, dtype=torch.float32,
                                            attn_implementation="sdpa", **options)
    else:
        encoder = AutoModel.from_config(config, attn_implementation="sdpa", **options)
    return Model(encoder, args.pooling, args.task)


def build_batches(args, vocab_size: int, device: torch.device) -> list[dict]:
    """One batch of full rows, or those of the file of lengths, each padded to its longest row."""
    generator = torch.Generator().manual_seed(args.seed)
    lengths = json.loads(args.lengths.read_text()) if args.lengths else [[args.max_length] * args.batch_size]
    batches = []
    for rows in lengths:
        columns = torch.arange(max(rows))
        mask = (columns[None, :] < torch.tensor(rows)[:, None]).long()
        # Ids from 2 up are no padding in any of these families.
        ids = torch.randint(2, vocab_size, mask.shape, generator=generator) * mask
        labels = {t: torch.randint(n, (len(rows),), generator=generator).to(device) for t, n in args.task.items()}
        batches.append({"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels})
    return batches


class Clock:
    """Marks moments: CUDA events on a GPU, wall time on a CPU."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.marks = []

    def mark(self) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def spans_ms(self) -> list[float]:
        """The times between the marks; waits for the device."""
        if self.cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) for a, b in zip(self.marks, self.marks[1:])]
        return [1e3 * (b - a) for a, b in zip(self.marks, self.marks[1:])]


class Scenario:
    """One freeze spec with its own copy of the model."""

    def __init__(self, freeze: str, base: Model, args, device: torch.device):
        self.freeze, self.args, self.device = freeze, args, device
        self.model = copy.deepcopy(base).to(device)
        names = {name.removeprefix("encoder.") if name.startswith("encoder.") else name: parameter
                 for name, parameter in self.model.named_parameters()}
        trained = trained_names(freeze, list(names))
        for name, parameter in names.items():
            parameter.requires_grad_(name in trained)
        self.live = [names[name] for name in names if name in trained]
        self.n_trained = sum(parameter.numel() for parameter in self.live)
        groups = [{"params": [names[n] for n in names if n in trained and takes_decay(n)], "weight_decay": 0.01},
                  {"params": [names[n] for n in names if n in trained and not takes_decay(n)], "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=5e-5, fused=True) if groups else None
        self.model.train(bool(groups))
        self.run = torch.compile(self.model) if args.compile else self.model
        self.times = {phase: [] for phase in PHASES}

    def loss(self, batch: dict) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.dtype == "bf16"):
            return self.run(**batch)

    def step(self, batch: dict) -> list[float]:
        """One step; the milliseconds of its three phases."""
        clock = Clock(self.device)
        if clock.cuda:
            torch.cuda.synchronize()
        clock.mark()
        if self.optimizer is None:
            with torch.inference_mode():
                self.loss(batch)
            clock.mark()
            return clock.spans_ms() + [0.0, 0.0]
        loss = self.loss(batch)
        clock.mark()
        loss.backward()
        clock.mark()
        nn.utils.clip_grad_norm_(self.live, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        clock.mark()
        return clock.spans_ms()

    def record(self, batch: dict) -> None:
        for phase, span in zip(PHASES, self.step(batch)):
            self.times[phase].append(span)

    def report(self) -> dict:
        steps = [sum(spans) for spans in zip(*self.times.values())]
        return {
            "freeze": self.freeze,
            "trainable_parameters": self.n_trained,
            "step_ms": {"median": statistics.median(steps), "times": steps},
            "phase_ms": {phase: statistics.median(spans) for phase, spans in self.times.items()},
        }


def environment(args, device: torch.device) -> dict:
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines()
                    if line.startswith("model name")), cpu)
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "dtype": args.dtype,
        "compile": args.compile,
    }


def task(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    return name, int(number)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="model folder")
    source.add_argument("--arch", choices=ARCHS, help="random weights of a published size")
    parser.add_argument("--task", type=task, action="append", required=True, metavar="NAME=N")
    parser.add_argument("--scenarios", default="none,lower:6,backbone,all", help="freeze specs, by commas")
    parser.add_argument("--pooling", choices=("mean", "cls", "pooler"), default="mean")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128, help="tokens in every row")
    parser.add_argument("--lengths", type=Path, help="JSON: a list of batches, each a list of row lengths")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3, help="steps of each scenario before the rounds")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32", help="bf16 is autocast")
    parser.add_argument("--dropout", type=float, help="every dropout probability (default: the config's)")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.task = dict(args.task)
    return args


def main() -> None:
    args = parse_arguments()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    base = build_model(args)
    batches = build_batches(args, base.encoder.config.vocab_size, device)
    scenarios = [Scenario(freeze, base, args, device) for freeze in args.scenarios.split(",")]
    for scenario in scenarios:
        for index in range(args.warmup):
            scenario.step(batches[index % len(batches)])
    for index in range(args.rounds):
        # Each round begins with another scenario, so that no one is always the first.
        for place in range(len(scenarios)):
            # The batches behind those of the warm-up, as in frostline.
            batch = batches[(args.warmup + index) % len(batches)]
            scenarios[(index + place) % len(scenarios)].record(batch)

    n_tokens = [int(batch["attention_mask"].sum()) for batch in batches]
    document = {
        "environment": environment(args, device),
        "model": str(args.model or args.arch),
        "pooling": args.pooling,
        "tokens_per_batch": n_tokens,
        "padded_tokens_per_batch": [batch["input_ids"].numel() for batch in batches],
        "rounds": args.rounds,
        "scenarios": [scenario.report() for scenario in scenarios],
    }
    if args.json:
        print(json.dumps(document, indent=1))
        return
    print(f"{'freeze':30} {'trained':>12} {'step ms':>9} " + " ".join(f"{phase:>9}" for phase in PHASES))
    for row in document["scenarios"]:
        spans = " ".join(f"{row['phase_ms'][phase]:9.2f}" for phase in PHASES)
        print(f"{row['freeze']:30} {row['trainable_parameters']:12,} {row['step_ms']['median']:9.2f} {spans}")


if __name__ == "__main__":
    main()
