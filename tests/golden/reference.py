"""What frostline's `step` must compute, by way of transformers and torch.

Nothing here is shared with the Rust side: the freeze specs, the naming of tensors, the pooling and
the decay rule are written a second time, from their description, so that the two can disagree.
"""

import re
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

# Tensors that stand in published files without being part of the encoder or a head.
IGNORED = re.compile(r"(^|\.)position_ids$|^cls\.")
PREFIX = re.compile(r"^(bert|roberta|distilbert)\.")


@dataclass
class Case:
    """A model folder and a batch. Tensors have the names and types of the file."""

    name: str
    config: dict
    tensors: dict[str, torch.Tensor]
    batch: dict[str, torch.Tensor]
    pooling: str
    tasks: dict[str, int]
    n_shards: int = 1
    metadata: dict | None = field(default_factory=lambda: {"format": "pt"})

    @property
    def parameter_names(self) -> list[str]:
        return [name for name in self.tensors if not IGNORED.search(name)]


@dataclass
class Run:
    """One call of `step` on a case."""

    freeze: str = "none"
    steps: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


def group_of(name: str) -> str | int:
    """The unit of freezing that a tensor belongs to; a layer is its number."""
    bare = PREFIX.sub("", name)
    layer = re.match(r"(?:encoder|transformer)\.layer\.(\d+)\.", bare)
    if layer:
        return int(layer[1])
    for unit in ("embeddings", "pooler"):
        if bare.startswith(unit + "."):
            return unit
    head = re.match(r"heads\.(.+)\.(?:weight|bias)$", name)
    if head:
        return "head:" + head[1]
    raise ValueError(f"{name} belongs to no unit")


def matches_of(part: str, names: list[str]) -> set[str]:
    """The tensors that one part of a freeze spec speaks of; empty where it matches nothing."""
    keyword, _, argument = part.partition(":")
    if keyword == "all":
        return set(names)
    if keyword == "backbone":
        return {n for n in names if not str(group_of(n)).startswith("head:")}
    if keyword in ("embeddings", "pooler"):
        return {n for n in names if group_of(n) == keyword}
    if keyword == "head":
        return {n for n in names if group_of(n) == part}
    if keyword == "lower":
        units = {"embeddings", *range(int(argument))}
        return {n for n in names if group_of(n) in units}
    if keyword == "layers":
        first, end = map(int, argument.split(".."))
        return {n for n in names if group_of(n) in range(first, end)}
    if keyword in ("name", "keep"):
        glob = re.compile(".*".join(map(re.escape, argument.split("*"))))
        return {n for n in names if glob.fullmatch(n)}
    raise ValueError(f"unknown part {part}")


def trained_names(spec: str, names: list[str]) -> set[str]:
    """The tensors that a freeze spec leaves trainable."""
    trained = set(names)
    for part in spec.split("+"):
        if part == "none":
            continue
        matched = matches_of(part, names)
        if not matched:
            raise ValueError(f"{part} matches nothing")
        trained = trained | matched if part.startswith("keep:") else trained - matched
    return trained


def takes_decay(name: str) -> bool:
    """Everything but biases and LayerNorm parameters (`gamma` and `beta` in old files)."""
    *_, module, leaf = name.split(".")
    return leaf not in ("bias", "beta") and "norm" not in module.lower()


class MultiTask(nn.Module):
    """A transformers encoder with one linear head per task."""

    def __init__(self, case: Case, dtype: torch.dtype):
        super().__init__()
        self.pooling, self.tasks = case.pooling, case.tasks
        # AutoConfig.for_model takes the keys of config.json over the class's defaults, as loading does.
        settings = {k: v for k, v in case.config.items() if k != "model_type"}
        config = AutoConfig.for_model(case.config["model_type"], **settings)
        has_pooler = any("pooler." in name for name in case.tensors)
        options = {} if case.config["model_type"] == "distilbert" else {"add_pooling_layer": has_pooler}
        self.encoder = AutoModel.from_config(config, attn_implementation="eager", **options)
        width = self.encoder.config.hidden_size
        self.heads = nn.ModuleDict({task: nn.Linear(width, n) for task, n in case.tasks.items()})
        self.to(dtype).eval()

        # File name -> parameter. Old files call LayerNorm's pair gamma and beta.
        own = dict(self.named_parameters())
        self.by_file_name = {}
        for name in case.parameter_names:
            bare = name if name.startswith("heads.") else "encoder." + PREFIX.sub("", name)
            bare = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", bare)
            bare = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", bare)
            parameter = own.pop(bare)
            if parameter.shape != case.tensors[name].shape:
                raise ValueError(f"{name}: file {case.tensors[name].shape}, model {parameter.shape}")
            with torch.no_grad():
                parameter.copy_(case.tensors[name])
            self.by_file_name[name] = parameter
        if own:
            raise ValueError(f"not in the file: {sorted(own)}")

    def encode(self, batch: dict[str, torch.Tensor]):
        inputs = {"input_ids": batch["input_ids"].long(), "attention_mask": batch["attention_mask"].long()}
        if "token_type_ids" in batch and self.encoder.config.model_type != "distilbert":
            inputs["token_type_ids"] = batch["token_type_ids"].long()
        return self.encoder(**inputs)

    def pooled(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        output = self.encode(batch)
        hidden = output.last_hidden_state
        if self.pooling == "pooler":
            return output.pooler_output
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = batch["attention_mask"].to(hidden.dtype)[:, :, None]
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, batch: dict[str, torch.Tensor]):
        """Logits and losses by task."""
        pooled = self.pooled(batch)
        logits = {task: self.heads[task](pooled) for task in self.tasks}
        losses = {
            task: nn.functional.cross_entropy(logits[task], batch[f"labels.{task}"].long(), ignore_index=-100)
            for task in self.tasks
        }
        return logits, losses


def step(case: Case, run: Run, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """The dump that `frostline step` should write, as f32."""
    model = MultiTask(case, dtype)
    trained = trained_names(run.freeze, case.parameter_names)
    for name, parameter in model.by_file_name.items():
        parameter.requires_grad_(name in trained)
    live = {n: p for n, p in model.by_file_name.items() if p.requires_grad}
    groups = [
        {"params": [p for n, p in live.items() if takes_decay(n)], "weight_decay": run.weight_decay},
        {"params": [p for n, p in live.items() if not takes_decay(n)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=run.learning_rate) if groups else None

    dump = {}
    for index in range(run.steps):
        logits, losses = model(case.batch)
        loss = sum(losses.values())
        if loss.requires_grad:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        if index == 0:
            dump["loss"] = loss.detach().reshape(1)
            dump.update({f"loss.{task}": value.detach().reshape(1) for task, value in losses.items()})
            dump.update({f"logits.{task}": value.detach() for task, value in logits.items()})
            dump.update({f"grad.{n}": p.grad.clone() for n, p in live.items() if p.grad is not None})
        if run.steps > 1 and loss.requires_grad:
            if run.max_grad_norm > 0:
                nn.utils.clip_grad_norm_(live.values(), run.max_grad_norm)
            optimizer.step()
    if run.steps > 1:
        dump.update({f"param.{n}": p.detach().clone() for n, p in model.by_file_name.items()})
    return {name: value.to(torch.float32).contiguous() for name, value in dump.items()}


# Comparison. tests/pytorch.rs holds the same rule; the reasons for the numbers stand there.
RELATIVE = 1e-4
ZERO_IN_THEORY = 1e-9
ZERO_NOISE = 1e-5
UPDATE = 5e-3


def compare(expected: dict, actual: dict, case: Case, run: Run) -> tuple[float, str, list[str]]:
    """The worst relative error over all tensors, where it is, and every breach of the rule.

    Each check has the form `error <= tolerance`, so that NaN fails.
    """
    worst, where, faults = 0.0, "-", []
    if expected.keys() != actual.keys():
        missing, extra = sorted(expected.keys() - actual.keys()), sorted(actual.keys() - expected.keys())
        faults.append(f"missing {missing}, not expected {extra}")
    norms = {n: float(t.double().norm()) for n, t in expected.items() if n.startswith("grad.")}
    largest = max(norms.values(), default=0.0)
    vanishing = {n for n, norm in norms.items() if norm <= ZERO_IN_THEORY * largest}
    for name in sorted(expected.keys() & actual.keys()):
        e, a = expected[name].double(), actual[name].double()
        if e.shape != a.shape:
            faults.append(f"{name}: shape {tuple(a.shape)}, expected {tuple(e.shape)}")
            continue
        bare = name.removeprefix("param.")
        if name.startswith("param.") and f"grad.{bare}" not in expected:
            if not torch.equal(actual[name], case.tensors[bare].float()):
                faults.append(f"{name}: changed, though frozen or not reached by the loss")
            continue
        if name in vanishing:
            if not float(a.norm()) <= ZERO_NOISE * largest:
                faults.append(f"{name}: {float(a.norm()):.2e} where 0 is expected")
            continue
        if name.startswith("param.") and f"grad.{bare}" in vanishing:
            if not float((a - e).abs().max()) <= 2 * run.learning_rate * run.steps:
                faults.append(f"{name}: moved further than AdamW's steps can carry it")
            continue
        difference, norm = float((a - e).norm()), float(e.norm())
        error = difference / norm if norm else difference
        if not error <= worst:
            worst, where = error, name
        if not error <= RELATIVE:
            faults.append(f"{name}: relative error {error:.2e}")
        if name.startswith("param."):
            update = float((e - case.tensors[bare].double()).norm())
            rounding = run.steps * 2.0**-24 * norm
            if not difference <= UPDATE * update + rounding:
                faults.append(f"{name}: off by {difference / update:.2e} of its update")
    return worst, where, faults
