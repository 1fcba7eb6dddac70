"""Small random models and batches in all the shapes that model folders come in."""

import json
import random
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from reference import Case, Run, trained_names

TWO_TASKS = {"topic": 5, "sentiment": 3}
PREFIXES = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta.", "distilbert": "distilbert."}


def make_config(arch: str, *, hidden: int, n_heads: int, ffn: int, n_layers: int, vocab: int, positions: int,
                n_types: int, eps: float | None, pad_id: int) -> dict:
    """config.json; keys whose value is the class's default are left out where `eps` is None."""
    if arch == "distilbert":
        return {"model_type": arch, "vocab_size": vocab, "dim": hidden, "n_layers": n_layers, "n_heads": n_heads,
                "hidden_dim": ffn, "max_position_embeddings": positions, "activation": "gelu", "dropout": 0.1,
                "attention_dropout": 0.1, "pad_token_id": pad_id}
    config = {"model_type": arch, "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": n_layers,
              "num_attention_heads": n_heads, "intermediate_size": ffn, "max_position_embeddings": positions,
              "type_vocab_size": n_types}
    if eps is not None:
        config |= {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
                   "layer_norm_eps": eps, "pad_token_id": pad_id}
    return config


def tensor_shapes(config: dict, prefix: str, pooler: bool, gamma: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the encoder as its family's files have them."""
    distil = config["model_type"] == "distilbert"
    d = config["dim" if distil else "hidden_size"]
    f = config["hidden_dim" if distil else "intermediate_size"]
    shapes = {"embeddings.word_embeddings.weight": (config["vocab_size"], d),
              "embeddings.position_embeddings.weight": (config["max_position_embeddings"], d)}
    if not distil:
        shapes["embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], d)

    def linear(name, n_out, n_in):
        shapes[name + ".weight"], shapes[name + ".bias"] = (n_out, n_in), (n_out,)

    def norm(name):
        shapes[name + (".gamma" if gamma else ".weight")] = (d,)
        shapes[name + (".beta" if gamma else ".bias")] = (d,)

    norm("embeddings.LayerNorm")
    for index in range(config["n_layers" if distil else "num_hidden_layers"]):
        if distil:
            layer = f"transformer.layer.{index}."
            projections = ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"]
            rest = ["ffn.lin1", "ffn.lin2", "sa_layer_norm", "output_layer_norm"]
        else:
            layer = f"encoder.layer.{index}."
            projections = [f"attention.self.{p}" for p in ("query", "key", "value")] + ["attention.output.dense"]
            rest = ["intermediate.dense", "output.dense", "attention.output.LayerNorm", "output.LayerNorm"]
        for name in projections:
            linear(layer + name, d, d)
        linear(layer + rest[0], f, d)
        linear(layer + rest[1], d, f)
        norm(layer + rest[2])
        norm(layer + rest[3])
    if pooler:
        linear("pooler.dense", d, d)
    return {prefix + name: shape for name, shape in shapes.items()}


def random_tensors(shapes: dict[str, tuple[int, ...]], generator: torch.Generator, dtype: torch.dtype) -> dict:
    """Far from initialisation: every gradient is of a size that can be compared."""
    tensors = {}
    for name, shape in shapes.items():
        values = 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        *_, module, leaf = name.split(".")
        if leaf == "gamma" or (leaf == "weight" and "norm" in module.lower()):
            values += 1.0
        tensors[name] = values.to(dtype)
    return tensors


def make_batch(config: dict, lengths: list[int], longest: int, tasks: dict[str, int], rng: random.Random, *,
               integers: torch.dtype, token_types: bool) -> dict[str, torch.Tensor]:
    """Ragged rows. One row has the padding id among its words, one has words behind its mask."""
    pad_id, vocab = config.get("pad_token_id", 1 if "roberta" in config["model_type"] else 0), config["vocab_size"]
    n_types = config.get("type_vocab_size", 2)
    ids = torch.full((len(lengths), longest), pad_id, dtype=integers)
    mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
    words = [i for i in range(vocab) if i != pad_id]
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.tensor([rng.choice(words) for _ in range(length)])
        types[row, :length] = torch.tensor([rng.randrange(n_types) for _ in range(length)])
        mask[row, :length] = 1
    long_rows = [row for row, length in enumerate(lengths) if length > 2]
    if long_rows:
        row = rng.choice(long_rows)
        ids[row, rng.randrange(1, lengths[row] - 1)] = pad_id
    short_rows = [row for row, length in enumerate(lengths) if length < longest]
    if short_rows:
        row = rng.choice(short_rows)
        ids[row, lengths[row]:] = torch.tensor([rng.choice(words) for _ in range(longest - lengths[row])])
    batch = {"input_ids": ids, "attention_mask": mask}
    if token_types:
        batch["token_type_ids"] = types
    for task, n_labels in tasks.items():
        labels = [rng.randrange(n_labels) if rng.random() < 0.7 else -100 for _ in lengths]
        # A task needs a labelled row, and the golden cases a row without a label.
        labels[rng.randrange(len(labels))] = rng.randrange(n_labels)
        batch[f"labels.{task}"] = torch.tensor(labels)
    return batch


def make_case(name: str, seed: int, arch: str, *, hidden=16, n_heads=2, ffn=36, n_layers=3, vocab=37, longest=9,
              lengths=(9, 1, 5, 2, 7, 3), pooling="mean", tasks=None, prefix=False, pooler=False, gamma=False,
              eps: float | None = 1e-5, n_types=2, spare_positions=2, dtype=torch.float32, integers=torch.int64,
              token_types=True, position_ids=False, unused=False, n_shards=1, metadata=True) -> Case:
    tasks = tasks or TWO_TASKS
    roberta = "roberta" in arch
    pad_id = 1 if roberta else 0
    positions = longest + spare_positions + (pad_id + 1 if roberta else 0)
    config = make_config(arch, hidden=hidden, n_heads=n_heads, ffn=ffn, n_layers=n_layers, vocab=vocab,
                         positions=positions, n_types=n_types, eps=eps, pad_id=pad_id)
    shapes = tensor_shapes(config, PREFIXES[arch] if prefix else "", pooler, gamma)
    for task, n_labels in tasks.items():
        shapes |= {f"heads.{task}.weight": (n_labels, hidden), f"heads.{task}.bias": (n_labels,)}
    if unused:
        shapes |= {"cls.predictions.bias": (vocab,), "cls.predictions.transform.dense.weight": (hidden, hidden),
                   "cls.predictions.transform.dense.bias": (hidden,)}
    tensors = random_tensors(shapes, torch.Generator().manual_seed(seed), dtype)
    if position_ids:
        where = (PREFIXES[arch] if prefix else "") + "embeddings.position_ids"
        tensors[where] = torch.arange(positions).reshape(1, -1)
    batch = make_batch(config, list(lengths), longest, tasks, random.Random(seed), integers=integers,
                       token_types=token_types and arch != "distilbert")
    return Case(name, config, tensors, batch, pooling, tasks, n_shards, {"format": "pt"} if metadata else None)


def write_folder(case: Case, folder: Path) -> None:
    """config.json, the weights in one file or in shards, and batch.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case.config, indent=2) + "\n")
    save_file(case.batch, folder / "batch.safetensors")
    names = sorted(case.tensors)
    if case.n_shards == 1:
        save_file(case.tensors, folder / "model.safetensors", metadata=case.metadata)
        return
    weight_map = {}
    for shard in range(case.n_shards):
        file = f"model-{shard + 1:05}-of-{case.n_shards:05}.safetensors"
        mine = names[shard::case.n_shards]
        save_file({n: case.tensors[n] for n in mine}, folder / file, metadata=case.metadata)
        weight_map |= {n: file for n in mine}
    size = sum(t.numel() * t.element_size() for t in case.tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


# The golden cases. Between them the runs use every part of the freeze grammar. Weight decay and
# clipping are set so that leaving either out, or applying it to the wrong tensors, shows in `param.*`:
# AdamW hardly feels a constant factor on its gradients unless they come down to its epsilon.
GENTLE = {"steps": 3, "learning_rate": 1e-3, "weight_decay": 0.01, "max_grad_norm": 1.0}
DECAY = {"steps": 3, "learning_rate": 1e-2, "weight_decay": 0.5, "max_grad_norm": 0.0}
CLIP = {"steps": 3, "learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 1e-5}


def golden() -> list[tuple[Case, list[Run]]]:
    def runs(*gradient_specs, **longer):
        """Gradients for each spec, then one 3-step run for each `settings = [specs]`."""
        settings = {"gentle": GENTLE, "decay": DECAY, "clip": CLIP}
        return [Run(spec) for spec in gradient_specs] + [
            Run(spec, **settings[key]) for key, specs in longer.items() for spec in specs]

    return [
        (make_case("bert-mean", 1, "bert", pooler=True, position_ids=True),
         runs("backbone", "head:topic", "lower:1", "pooler", "layers:1..2", "embeddings",
              "name:*.attention.*+name:*LayerNorm*", "all+keep:*value.weight",
              gentle=["none"], decay=["lower:2"], clip=["backbone+head:sentiment", "all"])),
        (make_case("bert-cls", 2, "bert", prefix=True, gamma=True, unused=True, hidden=24, n_heads=3, ffn=27, vocab=41,
                   pooling="cls", integers=torch.int32, token_types=False, eps=1e-12),
         runs("none", "lower:3", "name:*query*", "head:sentiment+lower:1", "name:*.LayerNorm.gamma",
              decay=["all+keep:*.bias+keep:*.beta+keep:heads.*"])),
        (make_case("bert-pooler", 3, "bert", prefix=True, pooler=True, pooling="pooler", vocab=43, ffn=28, eps=0.02,
                   tasks={"topic": 5, "sentiment": 3, "urgent": 2}, n_types=3),
         runs("pooler", "backbone", "lower:3", "lower:3+pooler", "head:topic+head:urgent",
              "backbone+keep:bert.pooler.dense.*", "all+keep:*word_embeddings*", clip=["none"], gentle=["lower:2"])),
        (make_case("bert-f16", 4, "bert", hidden=64, n_heads=1, ffn=24, n_layers=2, vocab=47, longest=7,
                   lengths=(3, 7, 1, 4, 6), eps=None, dtype=torch.float16),
         runs("none", "lower:1", "layers:0..2+keep:*.0.output.dense.bias", gentle=["lower:2"])),
        (make_case("roberta-mean", 5, "roberta", prefix=True, n_types=1, spare_positions=0, vocab=53,
                   token_types=False, eps=1e-3),
         runs("all", "lower:1", "lower:3", "embeddings+name:*layer.0.attention*", "layers:1..3",
              "all+keep:*position_embeddings*", gentle=["none"], decay=["all+keep:*.bias+keep:heads.*"])),
        (make_case("roberta-sharded", 6, "roberta", pooler=True, pooling="cls", n_types=1, n_shards=2, vocab=59,
                   eps=None, dtype=torch.bfloat16, ffn=30),
         runs("none", "backbone", "lower:2", decay=["head:sentiment"])),
        (make_case("xlm-roberta-pooler", 7, "xlm-roberta", prefix=True, pooler=True, pooling="pooler", n_types=1,
                   vocab=61, n_layers=1, eps=1e-3),
         runs("lower:1", gentle=["none"])),
        (make_case("distilbert-cls", 8, "distilbert", prefix=True, pooling="cls", ffn=40,
                   lengths=(2, 9, 4, 1, 9, 6, 3)),
         runs("none", "lower:2", "name:*.q_lin.*+name:*layer_norm*", "backbone",
              decay=["embeddings"], clip=["lower:1"])),
        (make_case("distilbert-mean", 9, "distilbert", hidden=24, n_heads=3, ffn=33, vocab=41, metadata=False),
         runs("none", "layers:0..1", "all", "all+keep:*.k_lin.*+keep:heads.topic.*", gentle=["lower:3"])),
    ]


def entry(case: Case, run: Run, expected: str, autocast: dict[str, float]) -> dict:
    return {**asdict(run), "expected": expected, "autocast": autocast}


def random_case(rng: random.Random, index: int) -> tuple[Case, Run]:
    """Any architecture, size, batch, spec and settings that `step` promises to run."""
    arch = rng.choice(list(PREFIXES))
    n_heads, head_size = rng.randint(1, 4), rng.choice([8, 8, 16, 24])
    pooler = arch != "distilbert" and rng.random() < 0.6
    longest, n_layers = rng.randint(2, 40), rng.randint(1, 4)
    lengths = [longest] + [rng.randint(1, longest) for _ in range(rng.randint(0, 7))]
    rng.shuffle(lengths)
    tasks = dict(rng.sample([("topic", 5), ("sentiment", 3), ("urgent", 2), ("area", 17)], rng.randint(1, 3)))
    case = make_case(
        f"random-{index}", rng.randrange(2**31), arch, hidden=n_heads * head_size, n_heads=n_heads,
        ffn=rng.randint(1, 90), n_layers=n_layers, vocab=rng.randint(5, 120), longest=longest, lengths=lengths,
        pooling=rng.choice(["mean", "cls"] + ["pooler"] * (2 * pooler)), tasks=tasks, prefix=rng.random() < 0.5,
        pooler=pooler, gamma=arch == "bert" and rng.random() < 0.3, eps=rng.choice([None, 1e-12, 1e-5, 1e-2]),
        n_types=1 if "roberta" in arch else rng.randint(1, 3), spare_positions=rng.randint(0, 3),
        dtype=rng.choice([torch.float32] * 3 + [torch.float16, torch.bfloat16]),
        integers=rng.choice([torch.int64, torch.int32]), token_types=rng.random() < 0.7,
        position_ids=rng.random() < 0.3, unused=rng.random() < 0.3, n_shards=rng.choice([1, 1, 1, 3]),
        metadata=rng.random() < 0.8)
    run = Run(random_spec(rng, case, n_layers), steps=rng.choice([1, 1, 3]), learning_rate=rng.choice([1e-3, 1e-2]),
              weight_decay=rng.choice([0.0, 0.01, 0.5]), max_grad_norm=rng.choice([0.0, 1e-4, 1.0]))
    return case, run


def random_spec(rng: random.Random, case: Case, n_layers: int) -> str:
    """One to three parts that each match something."""
    names = case.parameter_names

    def part():
        first = rng.randrange(n_layers)
        name = rng.choice(names)
        pieces = name.split(".")
        glob = rng.choice([name, f"*{pieces[-2]}*", f"*.{pieces[-1]}", f"{pieces[0]}.*", f"*{pieces[-2]}.{pieces[-1]}"])
        return rng.choice(["all", "backbone", "embeddings", "pooler", f"lower:{first + 1}",
                           f"layers:{first}..{rng.randint(first + 1, n_layers)}",
                           f"head:{rng.choice(list(case.tasks))}", f"name:{glob}", f"keep:{glob}"])

    while True:
        spec = "+".join(part() for _ in range(rng.randint(1, 3)))
        if rng.random() < 0.1:
            # Behind another part, whether `none` freezes nothing more or lets all train again is not settled.
            spec = rng.choice(["none", "none+" + spec])
        try:
            trained = trained_names(spec, names)
        except ValueError:
            continue
        # Key biases alone have no gradient to hold the noise against.
        if not trained or any(not n.endswith(("key.bias", "k_lin.bias")) for n in trained):
            return spec
