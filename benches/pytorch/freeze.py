"""The peer: the freeze scenarios of `frostline bench`, as a careful PyTorch user would run them.

    python freeze.py --arch bert-base --task topic=5 --task sentiment=3 --scenarios none,lower:6,backbone,all --json
    python freeze.py --model DIR --lengths lengths.json --device cuda --dtype bf16 --compile

Frozen parameters have requires_grad=False, so autograd itself prunes the backward pass below the
lowest trained tensor; the optimizer holds trained parameters only; a model frozen whole runs in eval
mode under inference_mode. AdamW is fused, rounds are interleaved over scenarios. Dropout is what the
config says (`--dropout 0` to leave it out) in all of the model, frozen or not, as after model.train().

bf16 is autocast over f32 masters. It would cast frozen weights anew in each step, so frozen linear
layers and embeddings are kept in bf16.

Attention is SDPA. A batch of equal rows goes without a mask, since flash attention takes none. Batches
of unequal lengths are padded to their longest row, with a mask made before the step. On a GPU the
fused kernels are timed first, and the fastest one is used. On a CPU, PyTorch has no fused kernel with
dropout: a step that trains computes attention by parts there, unless `--dropout 0` is given. Which
ones ran stands under environment.sdpa.

`step_ms` is wall time, from an idle device until the loss is on the host, as in frostline; `device_ms`
and, on a GPU, `phase_ms` are times between events on the device.
"""

import argparse
import contextlib
import copy
import json
import platform
import signal
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
import transformers
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AutoConfig, AutoModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

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
FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
# Rounds that --seconds leaves: a median of fewer is worth little.
MIN_ROUNDS = 3

# SDPA with the mask that it is given, or none. Under the name "sdpa" transformers makes a mask of its own: while it is
# compiled it cannot read whether an all-ones mask hides anything, with torch before 2.14 it makes one even of None, and
# in eager mode the reading waits for the device. For names that it does not know, it makes none.
GIVEN_MASK = "sdpa_given_mask"
AttentionInterface.register(GIVEN_MASK, sdpa_attention_forward)


class Model(nn.Module):
    """An encoder, a pooling and one linear head per task; its output is the sum of the losses."""

    def __init__(self, encoder: nn.Module, pooling: str, tasks: dict[str, int]):
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        width = encoder.config.hidden_size
        self.heads = nn.ModuleDict({task: nn.Linear(width, n) for task, n in tasks.items()})

    def forward(self, inputs, is_token, labels):
        output = self.encoder(**inputs)
        if self.pooling == "pooler":
            pooled = output.pooler_output
        elif self.pooling == "cls":
            pooled = output.last_hidden_state[:, 0]
        elif is_token is None:
            pooled = output.last_hidden_state.mean(1)
        else:
            mask = is_token[:, :, None].to(output.last_hidden_state.dtype)
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
                                            attn_implementation=GIVEN_MASK, **options)
    else:
        encoder = AutoModel.from_config(config, attn_implementation=GIVEN_MASK, **options)
    return Model(encoder, args.pooling, args.task)


def build_batches(args, lengths: list[list[int]], config, device: torch.device) -> list[dict]:
    """A batch for each list of lengths of rows, padded to its longest row."""
    generator = torch.Generator().manual_seed(args.seed)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    batches = []
    for rows in lengths:
        columns = torch.arange(max(rows))[None, :]
        is_token = columns < torch.tensor(rows)[:, None]
        # Ids from 2 up are no padding in any of these families.
        ids = torch.randint(2, config.vocab_size, is_token.shape, generator=generator)
        inputs = {"input_ids": torch.where(is_token, ids, config.pad_token_id).to(device)}
        # One row of positions and one of types serve all texts: their gradients need no search through a whole batch
        # of indices. BERT and DistilBERT number positions so by themselves.
        if config.model_type == "roberta":
            inputs["position_ids"] = (config.pad_token_id + 1 + columns).to(device)
        if config.model_type != "distilbert":
            inputs["token_type_ids"] = torch.zeros_like(columns).to(device)
        inputs["attention_mask"], token_mask = None, None
        if not is_token.all():
            token_mask = is_token.to(device)
            # What SDPA would make of a boolean mask in every layer.
            mask = torch.zeros(is_token.shape, dtype=dtype).masked_fill(~is_token, -torch.inf).to(device)
            inputs["attention_mask"] = mask[:, None, None, :].expand(-1, 1, max(rows), -1)
        labels = {t: torch.randint(n, (len(rows),), generator=generator).to(device) for t, n in args.task.items()}
        batches.append({"inputs": inputs, "is_token": token_mask, "labels": labels})
    return batches


def attention_order(config, batch: dict, dtype: torch.dtype) -> list[SDPBackend]:
    """The kernels of attention, the fastest in forward and backward passes of the batch's shape first."""
    rows, length = batch["inputs"]["input_ids"].shape
    n_heads = config.num_attention_heads
    shape = (rows, length, n_heads, config.hidden_size // n_heads)
    device = batch["inputs"]["input_ids"].device
    q, k, v, dout = (torch.randn(shape, dtype=dtype, device=device).transpose(1, 2) for _ in range(4))
    for operand in (q, k, v):
        operand.requires_grad_()
    is_distilbert = config.model_type == "distilbert"
    dropout = config.attention_dropout if is_distilbert else config.attention_probs_dropout_prob
    mask = batch["inputs"]["attention_mask"]

    def passes(n: int) -> None:
        for _ in range(n):
            out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
            torch.autograd.grad(out, (q, k, v), dout)

    times = dict.fromkeys(FUSED, 0.0)
    for backend in FUSED:
        # One that takes no such type, shape or mask raises, and warns of each reason. It stays in front: it will not
        # run for this batch, and for one without a mask it may be flash attention.
        with contextlib.suppress(RuntimeError), warnings.catch_warnings(), sdpa_kernel(backend):
            warnings.simplefilter("ignore")
            passes(3)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # The device waits some 50 ms, in which the host queues all passes: launches are not in the time.
            torch.cuda._sleep(100_000_000)
            begin.record()
            passes(10)
            end.record()
            torch.cuda.synchronize()
            times[backend] = begin.elapsed_time(end)
    return [*sorted(FUSED, key=times.get), SDPBackend.MATH]


def wait(device: torch.device) -> None:
    """Until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


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
        """The times between the marks, once the device has passed them all."""
        if self.cuda:
            return [a.elapsed_time(b) for a, b in zip(self.marks, self.marks[1:])]
        return [1e3 * (b - a) for a, b in zip(self.marks, self.marks[1:])]


class Scenario:
    """One freeze spec with its own copy of the model."""

    def __init__(self, freeze: str, base: Model, args, device: torch.device):
        self.freeze, self.device = freeze, device
        self.is_bf16 = args.dtype == "bf16"
        self.model = copy.deepcopy(base).to(device)
        names = {name.removeprefix("encoder.") if name.startswith("encoder.") else name: parameter
                 for name, parameter in self.model.named_parameters()}
        trained = trained_names(freeze, list(names))
        for name, parameter in names.items():
            parameter.requires_grad_(name in trained)
        if self.is_bf16:
            narrow_frozen(self.model)
        self.live = [names[name] for name in names if name in trained]
        self.n_trained = sum(parameter.numel() for parameter in self.live)
        groups = [{"params": [names[n] for n in names if n in trained and takes_decay(n)], "weight_decay": 0.01},
                  {"params": [names[n] for n in names if n in trained and not takes_decay(n)], "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=5e-5, fused=True) if groups else None
        self.model.train(bool(groups))
        self.run = torch.compile(self.model) if args.compile else self.model
        self.wall_ms = []
        self.times = {phase: [] for phase in PHASES}

    def loss(self, batch: dict) -> torch.Tensor:
        with (torch.inference_mode(self.optimizer is None),
              torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bf16)):
            return self.run(**batch)

    def step(self, batch: dict) -> tuple[float, list[float]]:
        """One step; the milliseconds of wall time, and those of its phases."""
        clock = Clock(self.device)
        wait(self.device)
        begun = time.perf_counter()
        clock.mark()
        loss = self.loss(batch)
        clock.mark()
        if self.optimizer is not None:
            loss.backward()
            clock.mark()
            nn.utils.clip_grad_norm_(self.live, 1.0, foreach=True)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            clock.mark()
        loss.item()
        wait(self.device)
        wall_ms = 1e3 * (time.perf_counter() - begun)
        return wall_ms, clock.spans_ms()

    def record(self, batch: dict) -> None:
        wall_ms, spans = self.step(batch)
        # A model frozen whole has a forward phase alone.
        for phase, span in zip(PHASES, spans + [0.0] * (len(PHASES) - len(spans))):
            self.times[phase].append(span)
        self.wall_ms.append(wall_ms)

    def report(self) -> dict:
        device_ms = [sum(spans) for spans in zip(*self.times.values())]
        return {
            "freeze": self.freeze,
            "trainable_parameters": self.n_trained,
            "step_ms": {"median": statistics.median(self.wall_ms), "times": self.wall_ms},
            "device_ms": {"median": statistics.median(device_ms), "times": device_ms}
            if self.device.type == "cuda"
            else None,
            "phase_ms": {phase: statistics.median(spans) for phase, spans in self.times.items()},
        }

    def attention(self, batch: dict) -> list[str]:
        """The ops and the GPU's kernels of attention that a forward pass of the batch runs."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            self.loss(batch)
            wait(self.device)
        names = {event.name for event in profile.events()}
        ops = {name.removeprefix("aten::") for name in names if name.startswith("aten::_scaled_dot_product_")}
        kernels = {event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA
                   and any(part in event.name.lower() for part in ("flash", "fmha", "sdpa"))}
        return sorted(ops) + sorted(kernels)


def narrow_frozen(model: nn.Module) -> None:
    """Keeps what is frozen of linear layers and embeddings in bf16; autocast runs a LayerNorm in f32, so it stays."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)


def attention_of(scenarios: list[Scenario], batches: list[dict]) -> dict[str, dict[str, list[str]]]:
    """What computes attention in each scenario, without padding and with; warns where a GPU's is not fused."""
    kinds = {"unpadded": next((batch for batch in batches if batch["is_token"] is None), None),
             "padded": next((batch for batch in batches if batch["is_token"] is not None), None)}
    kinds = {kind: batch for kind, batch in kinds.items() if batch is not None}
    found = {}
    for scenario in scenarios:
        ran = {kind: scenario.attention(batch) for kind, batch in kinds.items()}
        found[scenario.freeze] = ran
        # cuDNN's kernel is a flash attention too.
        is_flash = "unpadded" not in ran or any("flash" in op or "cudnn" in op for op in ran["unpadded"])
        if scenario.device.type == "cuda" and not is_flash:
            print(f"freeze.py: {scenario.freeze}: without padding no flash attention ran: {ran}", file=sys.stderr)
    return found


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
    parser.add_argument("--seconds", type=float, default=float("inf"),
                        help=f"take no further round once measuring has taken this long, but {MIN_ROUNDS} at least")
    parser.add_argument("--warmup", type=int, default=3, help="steps of each scenario before the rounds")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32", help="bf16 is autocast over f32 masters")
    parser.add_argument("--dropout", type=float, help="every dropout probability (default: the config's)")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.task = dict(args.task)
    return args


def warm_up(scenarios: list[Scenario], batches: list[dict], args) -> None:
    for scenario in scenarios:
        for index in range(args.warmup):
            scenario.step(batches[index % len(batches)])
        if scenario.device.type == "cuda":
            # The first step of a shape plans its kernels (cuDNN) or compiles them, once in a whole training.
            shapes = {(batch["inputs"]["input_ids"].shape, batch["is_token"] is None): batch for batch in batches}
            for batch in shapes.values():
                scenario.step(batch)


def measure(scenarios: list[Scenario], batches: list[dict], args) -> None:
    """Takes rounds of all scenarios."""
    begun = time.perf_counter()
    for index in range(args.rounds):
        if index >= MIN_ROUNDS and time.perf_counter() - begun >= args.seconds:
            return
        # Each round begins with another scenario, so that no one is always the first.
        for place in range(len(scenarios)):
            # The batches behind those of the warm-up, as in frostline.
            batch = batches[(args.warmup + index) % len(batches)]
            scenarios[(index + place) % len(scenarios)].record(batch)


def main() -> None:
    args = parse_arguments()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    base = build_model(args)
    config = base.encoder.config
    # One batch of full rows, or those of the file.
    lengths = json.loads(args.lengths.read_text()) if args.lengths else [[args.max_length] * args.batch_size]
    batches = build_batches(args, lengths, config, device)
    scenarios = [Scenario(freeze, base, args, device) for freeze in args.scenarios.split(",")]
    if args.compile:
        # Models of one class share what is compiled for its code, and would share the limit that ends in eager mode.
        torch._dynamo.config.recompile_limit *= len(scenarios)
    order = contextlib.nullcontext()
    if device.type == "cuda":
        dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
        order = sdpa_kernel(attention_order(config, batches[0], dtype), set_priority=True)
    # A time limit ends the measuring, and what there is is printed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sdpa = None
    with order, contextlib.suppress(KeyboardInterrupt):
        warm_up(scenarios, batches, args)
        measure(scenarios, batches, args)
        # Behind the measurements, for a profiler leaves its hooks.
        try:
            sdpa = attention_of(scenarios, batches)
        except RuntimeError as error:
            print(f"freeze.py: attention was not profiled: {error}", file=sys.stderr)
    n_rounds = min(len(scenario.wall_ms) for scenario in scenarios)
    if n_rounds == 0:
        raise SystemExit("freeze.py: stopped before all scenarios had a round")

    document = {
        "environment": environment(args, device) | {"sdpa": sdpa},
        "model": str(args.model or args.arch),
        "pooling": args.pooling,
        "tokens_per_batch": [sum(rows) for rows in lengths],
        "padded_tokens_per_batch": [batch["inputs"]["input_ids"].numel() for batch in batches],
        "rounds": n_rounds,
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
