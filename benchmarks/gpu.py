"""All that is to be known of a GPU, in one go: whether results are right, then what layers and steps cost beside the
base's.

    python benchmarks/gpu.py --output gpu.jsonl                                # eight minutes and a bit
    python benchmarks/gpu.py --topology sd15 --dtype bfloat16 --minutes 3      # the first rows
    python benchmarks/gpu.py --topology embedded --dtype float32 --side 16     # anywhere: whether the script works

What matters most comes first; each row is printed and written as soon as it is known. After `--minutes` no comparison
is begun any more, and those that are left are named. Errors are the largest of an output and its gradients against
float64, as shares of the largest number, in multiples of plain attention's. Weights are random: time does not depend on
them. Ratios are taken turn by turn against the first column; "first" is the first step, with all that is compiled or
tuned for it. "counted" is the time of a layer that the kernels' tiles are chosen by (`gpu_code.py`).
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gpu_code
import torch
from attention import LAYERS
from timing import in_turns, machine, peak_memory
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from unet import SIDE, TOPOLOGIES, Way, lora, make_inputs, make_unet, sampling, training

from coeff_diffusion.method.kernels import recombined_attention
from coeff_diffusion.method.kernels.cuda_tiles import Layer, tiles_of
from coeff_diffusion.method.recombination import recombined_attention as materialized

BATCHES = (2, 8)
COMPILED = "reduce-overhead"  # CUDA graphs
LIMIT = 3.0  # times plain attention's error
RUNS = 20  # of a layer in a turn: one is too short to time


@dataclass(frozen=True)
class Case:
    """Ways to compute one kind of step, compared.

    Attributes:
        what: "sampling" or "training".
        batch: rows of the step, guidance included.
        side: of the latents; eight pixels each.
    """

    what: str
    topology: str
    dtype: str
    batch: int
    side: int
    compiled: bool = False

    def __str__(self) -> str:
        how = f", compiled ({COMPILED})" if self.compiled else ""
        return f"{self.topology}, {self.what}, batch {self.batch}, {8 * self.side} px, {self.dtype}{how}"


def cases(args: argparse.Namespace) -> list[Case]:
    """All of them, most wanted first."""
    sides = [args.side] if args.side else [SIDE, 2 * SIDE]
    first, *others = args.dtype
    found = []
    for dtype in (first, *others):
        for side in sides:
            found += [Case("sampling", one, dtype, batch, side) for one in args.topology for batch in BATCHES]
            found += [Case("training", one, dtype, 1, side) for one in args.topology]
        if dtype == first and args.compile:
            found += [Case("sampling", one, dtype, BATCHES[0], sides[0], True) for one in args.topology]
    return found


def errors(layer: str, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """How far recombined and plain attention of a layer are from float64, with one matrix and with one for each
    sample."""
    batch, heads, queries, keys, channels = LAYERS[layer]
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(batch, heads, n, channels, generator=generator) for n in (queries, keys, keys))
    found = {}
    for name, shape in (("one matrix", (heads, heads)), ("one a sample", (batch, heads, heads))):
        coeff = 0.1 * torch.randn(*shape, generator=generator)
        inputs = [x.to(device, dtype) for x in (query, key, value)] + [coeff.to(device)]
        exact = results(materialized, [x.double() for x in inputs])
        ours = results(recombined_attention, inputs)
        plain = results(scaled_dot_product_attention, inputs[:3])
        plain_exact = results(scaled_dot_product_attention, [x.double() for x in inputs[:3]])
        found[name] = _worst(ours, exact) / max(_worst(plain, plain_exact), torch.finfo(dtype).eps)
    return found


def results(way: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """An output and the gradients of the inputs, for a gradient of ones."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = way(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]


def _worst(found: list[Tensor], exact: list[Tensor]) -> float:
    return max(
        float((one.double() - other).abs().max() / other.abs().max().clamp(min=1e-12))
        for one, other in zip(found, exact, strict=True)
    )


def columns(case: Case, unet: Any) -> dict[str, Callable[[], None]]:
    """The ways of a case; the first is what the others are compared with."""
    inputs = make_inputs(unet, case.batch, case.side)
    if case.what == "training":
        return {"LoRA rank 4": lora(unet, inputs).train, "recombined": training(unet, inputs).train}
    ways = {"base": Way(unet, inputs), "recombined": sampling(unet, inputs)}
    if case.compiled:
        for way in ways.values():
            way.unet = torch.compile(way.unet, mode=COMPILED)
    else:
        ways["LoRA rank 4"] = lora(unet, inputs)
    return {name: way.sample for name, way in ways.items()}


def timed(case: Case, unet: Any, repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each way of a case."""
    ways, first, memory = columns(case, unet), {}, {}
    for name, way in ways.items():
        first[name] = in_turns({name: way}, 1, warm_up=0)[name].median
        with peak_memory() as used:
            way()
        memory[name] = used[0]
    for name, timing in in_turns(ways, repeats, warm_up=1).items():
        yield {
            **asdict(case),
            "way": name,
            "milliseconds": 1e3 * timing.median,
            "ratio": timing.ratio,
            "first_seconds": first[name],
            "mebibytes": memory[name],
        }


class Report:
    """Prints rows, and writes them to a file of JSON lines where one is given."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def row(self, record: dict[str, Any], line: str) -> None:
        print(line, flush=True)
        if self.file:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()


def check(args: argparse.Namespace, report: Report, device: str) -> bool:
    """Print the errors of all layers; whether all are within `LIMIT`."""
    print(f"\n| layer | type | error, one matrix | one a sample | (times plain attention's, at most {LIMIT:g}) |")
    print("| --- " * 5 + "|")
    right = True
    for layer, shape in LAYERS.items():
        if args.side and shape[2] > args.side**2:
            continue  # a look at a small size needs no large layers
        for dtype in dict.fromkeys([*args.dtype, "float32"]):
            try:
                found = errors(layer, getattr(torch, dtype), device)
            except torch.OutOfMemoryError as error:  # float64 maps of the largest layers take gigabytes
                _free()
                line = f"| {layer} | {dtype} | – | – | does not fit into memory |"
                report.row({"layer": layer, "dtype": dtype, "error": str(error)}, line)
                continue
            fine = max(found.values()) <= LIMIT
            right &= fine
            cells = " | ".join(f"{error:.2f}" for error in found.values())
            report.row({"layer": layer, "dtype": dtype, **found}, f"| {layer} | {dtype} | {cells} | {_verdict(fine)} |")
    return right


def _verdict(fine: bool) -> str:
    return "right" if fine else "**WRONG**"


def time_layers(args: argparse.Namespace, report: Report, device: str) -> None:
    """Print what single layers take, forward, in the first type."""
    dtype = getattr(torch, args.dtype[0])
    print("\n| layer, batch | base | recombined | ratio | counted |\n" + "| --- " * 5 + "|")
    for name, (heads, channels, queries, keys) in gpu_code.LAYERS.items():
        for batch in BATCHES:
            if args.side and queries > args.side**2:
                continue
            query, key, value = (
                torch.randn(batch, rows, heads, channels, dtype=dtype, device=device).transpose(1, 2)
                for rows in (queries, keys, keys)
            )
            coeff = 0.1 * torch.randn(heads, heads, device=device)

            def base(q: Tensor = query, k: Tensor = key, v: Tensor = value) -> None:
                for _ in range(RUNS):
                    scaled_dot_product_attention(q, k, v)

            def ours(q: Tensor = query, k: Tensor = key, v: Tensor = value, c: Tensor = coeff) -> None:
                for _ in range(RUNS):
                    recombined_attention(q, k, v, c)

            with torch.no_grad():
                found = in_turns({"base": base, "recombined": ours}, args.repeats)
            times = {way: 1e3 * timing.median / RUNS for way, timing in found.items()}
            layer = Layer(heads, channels, queries, keys, batch, dtype == torch.bfloat16)
            counted = _counted(layer, device) if dtype != torch.float32 else None
            record = {"layer": name, "batch": batch, "dtype": args.dtype[0], **times, "counted": counted}
            said = "–" if counted is None else f"{counted:.3f} ms"
            report.row(
                record,
                f"| {name}, {batch} | {times['base']:.3f} ms | {times['recombined']:.3f} ms | "
                f"{found['recombined'].ratio:.2f}x | {said} |",
            )


def _counted(layer: Layer, device: str) -> float | None:
    """Milliseconds; None on a GPU that nothing is known of, and elsewhere."""
    architecture = "sm_{}{}".format(*torch.cuda.get_device_capability()) if device == "cuda" else ""
    known = gpu_code.DEVICES.get(architecture)
    tiles = tiles_of(layer, known[0]) if known else None
    return gpu_code.milliseconds(tiles, layer, architecture, layer.apart) + gpu_code.LAUNCH if tiles else None


def measure(args: argparse.Namespace, report: Report, device: str, deadline: float) -> list[Case]:
    """Print the rows of all cases that the time suffices for; returns the others."""
    print("\n| step | way | time | ratio | first | memory beyond the weights |\n" + "| --- " * 6 + "|")
    left, unet, made = [], None, None
    for case in cases(args):
        if time.perf_counter() > deadline:
            left.append(case)
            continue
        try:
            if made != (case.topology, case.dtype):
                unet = None
                _free()
                unet = make_unet(case.topology, getattr(torch, case.dtype), device)
                made = (case.topology, case.dtype)
            for row in timed(case, unet, args.repeats):
                report.row(
                    row,
                    f"| {case} | {row['way']} | {row['milliseconds']:.1f} ms | {row['ratio']:.3f}x | "
                    f"{row['first_seconds']:.1f} s | {row['mebibytes']:.0f} MiB |",
                )
        except torch.OutOfMemoryError as error:
            report.row({**asdict(case), "error": str(error)}, f"| {case} | does not fit into memory | | | | |")
        _free()
    return left


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", nargs="+", choices=list(TOPOLOGIES), default=["sd15", "sdxl"])
    types = ["bfloat16", "float16", "float32"]
    parser.add_argument("--dtype", nargs="+", choices=types, default=["bfloat16", "float16"])
    parser.add_argument("--side", type=int, default=0, help="of the latents; 0: 64 and 128, which is 512 and 1,024 px")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=7.5, help="after them no other comparison is begun")
    parser.add_argument("--no_compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--output", type=Path, help="a file of JSON lines for the rows")
    args = parser.parse_args()
    deadline = time.perf_counter() + 60 * args.minutes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    print(f"{machine()}; medians of {args.repeats}")
    with ExitStack() as stack:
        report = Report(stack.enter_context(args.output.open("w", encoding="utf-8")) if args.output else None)
        right = check(args, report, device)
        time_layers(args, report, device)
        left = measure(args, report, device, deadline)
    for case in left:
        print(f"not measured for want of time: {case}")
    if not right:
        raise SystemExit("errors beyond the limit; see above")


if __name__ == "__main__":
    main()
