"""Single products and attentions in PyTorch, at the shapes and on the data of a folder that `gpu shapes` wrote.

    python shapes.py DIR --device cuda
    python shapes.py DIR --device cuda --json

DIR/shapes.json names the ops, what they took in frostline, and for each a file of its operands and frostline's results.
PyTorch does the same op on the same operands: F.linear, the products of autograd behind it, and SDPA. On a GPU flash
attention must be possible, and cuDNN's is tried beside it: the faster one counts. Times are those of the device alone,
as in frostline, which replays a recorded graph.

Errors are shares of the norm of the true result, which is computed in f64. `agrees` speaks of frostline's alone;
PyTorch's stands beside it. In bf16 it has one rounding more in the gradient of a weight, which autograd leaves in bf16
and frostline in f32. Exit status: 0 all agree, 1 any does not.
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

WARMUP = 3
# Times that the repetitions between two events are measured.
BATCHES = 12

RESULTS = {
    "gemm_fwd": ("out",),
    "gemm_dgrad": ("dx",),
    "gemm_wgrad": ("dweight", "dbias"),
    "attention_fwd": ("out",),
    "attention_bwd": ("dq", "dk", "dv"),
}


def torch_op(entry: dict, data: dict[str, torch.Tensor]):
    """The op on these operands, in their type: what to call, again and again, for its results."""
    op = entry["op"]
    if op == "gemm_fwd":
        # Autocast narrows the bias with the weight.
        bias = data["bias"].to(data["x"].dtype)
        return lambda: (F.linear(data["x"], data["weight"], bias),)
    if op == "gemm_dgrad":
        return lambda: (data["dout"] @ data["weight"],)
    if op == "gemm_wgrad":
        return lambda: (data["dout"].T @ data["x"], data["dout"].sum(0))

    def by_heads(name: str) -> torch.Tensor:
        shape = (entry["sequences"], entry["length"], entry["heads"], entry["head_size"])
        return data[name].view(shape).transpose(1, 2)

    q, k, v = map(by_heads, "qkv")
    if op == "attention_fwd":
        return lambda: (F.scaled_dot_product_attention(q, k, v),)
    if op == "attention_bwd":
        for operand in (q, k, v):
            operand.requires_grad_()
        out, dout = F.scaled_dot_product_attention(q, k, v), by_heads("dout")
        return lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
    raise SystemExit(f"shapes.py: {entry['name']}: unknown op {op}")


def packed(result: torch.Tensor) -> torch.Tensor:
    """Attention's results by heads as rows of tokens; others as they are."""
    return result.transpose(1, 2).flatten(2).flatten(0, 1) if result.dim() == 4 else result


def relative_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    if found.shape != truth.shape:
        raise SystemExit(f"shapes.py: a result of shape {tuple(found.shape)}, not {tuple(truth.shape)}")
    return ((found.double() - truth).norm() / truth.norm()).item()


def tolerance(entry: dict, dtype: torch.dtype) -> float:
    """What a result of this type may be off by."""
    if dtype == torch.bfloat16:
        # A product is rounded once, by at most 2^-8 of each value. Attention rounds its probabilities to bf16 as well,
        # and its backward pass their gradients too.
        return {"attention_fwd": 8e-3, "attention_bwd": 1e-2}.get(entry["op"], 4e-3)
    # In f32 the sum over `terms` counts. A tensor core takes 16 of them in a step and cuts off what lies below the
    # sum's last bit.
    terms = {"gemm_fwd": "k", "gemm_dgrad": "n", "gemm_wgrad": "rows"}.get(entry["op"], "length")
    return 2e-6 + entry[terms] / 16 * 2**-24


def worst(errors: list[float]) -> float:
    """The largest, and NaN where one is."""
    return max(errors, key=lambda error: (math.isnan(error), error))


def time_us(work, repeats: int, device: torch.device) -> list[float]:
    """Microseconds of one repetition, in each batch of them."""
    for _ in range(WARMUP):
        work()
    times = []
    if device.type == "cpu":
        for _ in range(BATCHES):
            begun = time.perf_counter()
            for _ in range(repeats):
                work()
            times.append((time.perf_counter() - begun) * 1e6 / repeats)
        return times
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(repeats):
        work()
    queueing_seconds = time.perf_counter() - begun
    for _ in range(BATCHES):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        # The device first idles for about twice as long as the host takes to queue the batch, at some 2 GHz, so that no
        # time of the host's lies between the events.
        torch.cuda._sleep(int(2 * queueing_seconds * 2e9))
        begin.record()
        for _ in range(repeats):
            work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / repeats)
    return times


def interval(times: list[float]) -> dict[str, float]:
    """The median and its 95 % interval by the percentile bootstrap, as in frostline."""
    generator = random.Random(42)
    medians = [statistics.median(generator.choices(times, k=len(times))) for _ in range(2000)]
    cuts = statistics.quantiles(medians, n=40, method="inclusive")
    return {"median": statistics.median(times), "low": cuts[0], "high": cuts[-1]}


def kernels(entry: dict, data: dict[str, torch.Tensor], device: torch.device) -> list[SDPBackend | None]:
    """What may compute the op; of attentions, the first one must."""
    if not entry["op"].startswith("attention"):
        return [None]
    if device.type == "cpu":
        return [SDPBackend.FLASH_ATTENTION]
    # Flash attention takes no f32 on a GPU.
    if data["q"].dtype == torch.float32:
        return [SDPBackend.EFFICIENT_ATTENTION]
    return [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]


def fastest(entry: dict, data: dict[str, torch.Tensor], repeats: int, device: torch.device):
    """PyTorch's kernel, its time, and its results."""
    runs = []
    choices = kernels(entry, data, device)
    for choice in choices:
        with sdpa_kernel(choice) if choice else nullcontext():
            try:
                work = torch_op(entry, data)
                us = interval(time_us(work, repeats, device))
            except RuntimeError:
                # cuDNN's attention does not take every shape.
                if choice == choices[0]:
                    raise
                continue
            name = choice.name.lower() if choice else "matmul"
            runs.append((us["median"], name, us, [packed(result) for result in work()]))
    return min(runs, key=lambda run: run[0])[1:]


def compare(entry: dict, folder: Path, repeats: int, device: torch.device) -> dict:
    data = load_file(folder / entry["file"], device=str(device))
    names = RESULTS[entry["op"]]
    own = [data.pop(name) for name in names]
    kernel, us, results = fastest(entry, data, repeats, device)
    wide = {name: operand.detach().double() for name, operand in data.items()}
    # The one that multiplies and adds up as the formula says, and takes f64.
    with sdpa_kernel(SDPBackend.MATH):
        truths = [packed(result) for result in torch_op(entry, wide)()]
    errors = [relative_error(found, truth) for found, truth in zip(own, truths)]
    torch_errors = [relative_error(found, truth) for found, truth in zip(results, truths)]
    limits = [tolerance(entry, found.dtype) for found in own]
    return {
        "name": entry["name"],
        "kernel": kernel,
        "frostline_us": entry["us"],
        "torch_us": us,
        "ratio": us["median"] / entry["us"]["median"],
        "frostline_tflops": entry["flops"] / entry["us"]["median"] / 1e6,
        "torch_tflops": entry["flops"] / us["median"] / 1e6,
        "frostline_error": worst(errors),
        "torch_error": worst(torch_errors),
        "agrees": all(error <= limit for error, limit in zip(errors, limits)),
    }


def table(rows: list[dict]) -> str:
    heads = f"{'frostline us':>12} {'torch us':>9} {'ratio':>6} {'TFLOP/s':>8} {'torch':>7} {'error':>8} {'torch':>8}"
    lines = [f"{'op':40} {'kernel':18} {heads}"]
    for row in rows:
        times = f"{row['frostline_us']['median']:12.1f} {row['torch_us']['median']:9.1f} {row['ratio']:6.2f}"
        rates = f"{row['frostline_tflops']:8.1f} {row['torch_tflops']:7.1f}"
        errors = f"{row['frostline_error']:8.1e} {row['torch_error']:8.1e}{'' if row['agrees'] else '  DISAGREES'}"
        lines.append(f"{row['name']:40} {row['kernel']:18} {times} {rates} {errors}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `gpu shapes DIR` wrote")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    described = json.loads((args.folder / "shapes.json").read_text())
    rows = [compare(entry, args.folder, described["repeats"], device) for entry in described["shapes"]]
    agrees = all(row["agrees"] for row in rows)
    environment = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "frostline_device": described["device"],
        "dtype": described["dtype"],
        "repeats": described["repeats"],
    }
    if args.json:
        # JSON has no NaN.
        rows = [{key: None if value != value else value for key, value in row.items()} for row in rows]
        print(json.dumps({"environment": environment, "shapes": rows, "agrees": agrees}, indent=1))
    else:
        print(table(rows))
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
