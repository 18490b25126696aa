"""A capacity plan: the memory that a model takes on a card, the speed to expect, and the replicas that a load needs.

Prints a line for each precision, the lines of a preset to paste, and the assumptions. Of the model, only config.json and the
headers of its safetensors are read. The exit status is 0, or 2 if no plan can be made.

    python -m cluster.plan --model MODEL --gpu rtx-4090 --count 8 [--load 5 --slo-ttft 2 --slo-tpot 0.05] [--json] [--help]
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from cluster.plan import architectures, capacity, sizing, speculation
from cluster.plan.architectures import PlanError, Shape
from cluster.plan.capacity import GIB, PRECISIONS, Card, Replica
from cluster.plan.sizing import Demand, Limits, Row
from cluster.plan.speculation import Entry

NAMES = {"bf16": "BF16", "fp8-kv": "BF16, FP8 KV", "fp8-weights": "FP8 weights", "fp8": "FP8, FP8 KV"}


def preset(chosen: Row, card: Card, drafts: Sequence[Entry], options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a preset: as many replicas as the load needs, or as there are cards for."""
    replicas = min(chosen.replicas or math.inf, options.count // chosen.gpus_per_replica)
    llm: dict[str, Any] = {"num_replicas": replicas, "num_gpus": chosen.gpus_per_replica, "accelerator_type": card.ray_type}
    engine: dict[str, Any] = {"dtype": "bfloat16"}
    if chosen.precision in ("fp8", "fp8-weights"):
        engine["quantization"] = "fp8_per_tensor"
    if chosen.precision in ("fp8", "fp8-kv"):
        engine |= {"kv_cache_dtype": "fp8", "attention_backend": "TRITON_ATTN"}  # others are compiled with nvcc, or have no FP8
    if chosen.gpus_per_replica > 1:
        llm["env"] = {"NCCL_P2P_DISABLE": "1"}
        engine["tensor_parallel_size"] = chosen.gpus_per_replica
    engine |= {
        "max_model_len": options.max_model_len,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "max_num_seqs": chosen.slots,
        "speculative_config": speculation.config(drafts),
    }
    name = Path(options.model).name.lower()
    return {"model": options.model, "served_model_name": name, "llm": llm, "engine": engine}


def drafts_of(chosen: Row, shape: Shape, card: Card, demand: Demand, options: argparse.Namespace) -> list[Entry]:
    """Return the number of drafts for each number of requests that run at a time."""
    precision = next(one for one in PRECISIONS if one.name == chosen.precision)
    replica = Replica(shape, card, precision, chosen.gpus_per_replica, options.gpu_memory_utilization)
    return speculation.schedule(replica, speculation.measured(), demand.context_tokens, chosen.slots)


def told(drafts: Sequence[Entry]) -> list[str]:
    """Return what the preset's speculation gives, a line each."""
    found, rates = speculation.read(), speculation.measured()
    steps = [f"{number} up to {last}" for _, last, number in drafts if number]
    if not steps:
        return ["speculation: none, it would cost time at every number of requests"]
    most = max(number for _, _, number in drafts)
    return [
        f"speculation, in the preset and not in the table: n-grams of {found['shortest']} to {found['longest']} tokens; drafts by",
        f"  the requests that run at a time: {', '.join(steps)}{'' if drafts[-1][2] else ', then none'}. With {most} a step gives"
        f" {rates[most]:g} tokens,",
        "  on greedy replies that Satori's authors published (cluster/plan/speculation.yaml)",
    ]


def assumptions(shape: Shape, demand: Demand, options: argparse.Namespace) -> list[str]:
    """Return the assumptions behind the figures, a line each."""
    kept = (
        f"gpu_memory_utilization {options.gpu_memory_utilization:g}, {capacity.OVERHEAD_BYTES / GIB:.1f} GiB a card for activations"
    )
    lines = [
        f"{shape.parameters:,} parameters, {shape.source}; FP8 leaves embedding, output layer and norms in BF16",
        f"memory: {kept}, CUDA graphs and libraries; max_model_len {options.max_model_len}",
        f"requests: {demand.prompt_tokens} + {demand.output_tokens} tokens each, no prefix shared; at most"
        f" {sizing.MAX_NUM_SEQS} run at a time in a replica",
        f"speed: a roofline at {capacity.BANDWIDTH_SHARE:.0%} of the bandwidth and {capacity.FLOPS_SHARE:.0%} of the FLOPs, and"
        f" {capacity.STEP_S * 1e3:g} ms a step, fitted to runs that others",
        "  published for the RTX 4090 (cluster/plan/published.yaml): they lie within a factor of 1.5 of it on one card, of 3 with",
        "  tensor parallelism; of FP8 there is one. Nothing here was measured by us on a GPU",
    ]
    if demand.requests_s is not None:
        lines.append("load: Poisson arrivals, evenly over replicas (M/M/c); TTFT is the one that 95 % stay below")
    if shape.windowed_layers:
        lines.append(f"{shape.windowed_layers} of {shape.layers} layers keep {shape.window} tokens at most (sliding window)")
    return lines


def table(rows: Sequence[Row], options: argparse.Namespace) -> str:
    """Return the rows as text."""
    head = ["", "GPUs/replica", "weights", "KV/token", "KV cache", "fit", "run", "tokens/s", "TPOT", "all GPUs"]
    head += ["replicas", "GPUs", "TTFT p95"] if options.load else []
    lines = [head]
    for one in rows:
        cells = [NAMES[one.precision], str(one.gpus_per_replica), f"{one.weights_gb:.1f} GB"]
        cells += [f"{one.kv_bytes_a_token / 1024:g} KiB", f"{one.kv_tokens:,}", str(one.fits), str(one.slots)]
        speed = [f"{one.tokens_s:,.0f}", f"{one.tpot_s * 1e3:.1f} ms", f"{one.all_tokens_s:,.0f}"]
        cells += speed if one.slots else ["-"] * 3
        if options.load:
            cells += [str(one.replicas), f"{one.gpus:g}", f"{one.ttft_s:.2f} s"] if one.replicas else ["-"] * 3
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rendered = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join([line[0].strip().ljust(widths[0]), *cells[1:]]) for line, cells in zip(lines, rendered, strict=True))


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""

    def above_zero(kind: type[int] | type[float]) -> Any:
        def read(word: str) -> float:
            value = kind(word)
            if not 0 < value < math.inf:
                raise argparse.ArgumentTypeError(f"{word} is not above 0")
            return value

        return read

    whole, number = above_zero(int), above_zero(float)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a directory with config.json, or a Hugging Face id")
    parser.add_argument(
        "--gpu", required=True, choices=sorted(capacity.cards()), help="the cards; their figures are in cluster/plan/gpus.yaml"
    )
    parser.add_argument("--count", type=whole, default=1, help="cards in all")
    parser.add_argument("--prompt-tokens", type=whole, default=256, help="of a request")
    parser.add_argument("--output-tokens", type=whole, default=1024, help="of a request, reasoning included")
    parser.add_argument("--load", type=number, metavar="REQUESTS_S", help="requests a second, over all replicas")
    parser.add_argument(
        "--slo-ttft", type=number, default=2.0, metavar="S", help="seconds to the first token, for 95 %% of the requests"
    )
    parser.add_argument("--slo-tpot", type=number, metavar="S", help="mean seconds of an output token; default: no limit")
    parser.add_argument(
        "--precision", choices=list(NAMES), help="the precision of the preset lines; default: the finest that is enough"
    )
    parser.add_argument("--max-model-len", type=whole, help="default: 4096, more where the request needs it")
    parser.add_argument("--gpu-memory-utilization", type=number, default=0.92, help="vLLM's share of each card")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if options.gpu_memory_utilization > 1:
        parser.error(f"argument --gpu-memory-utilization: {options.gpu_memory_utilization:g} is not at most 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a plan; return the exit status."""
    options = options_of(arguments)
    card = capacity.cards()[options.gpu]
    demand = Demand(options.prompt_tokens, options.output_tokens, options.slo_ttft, options.slo_tpot, options.load)
    try:
        shape = architectures.load(options.model)
        options.max_model_len = options.max_model_len or min(shape.context, max(4096, demand.tokens))
        if not demand.tokens <= options.max_model_len <= shape.context:
            raise PlanError(
                f"--max-model-len={options.max_model_len}: allowed: from {demand.tokens}, the tokens of a request, to"
                f" {shape.context}, the model's max_position_embeddings"
            )
        limits = Limits(options.count, options.max_model_len, options.gpu_memory_utilization)
        rows = [sizing.row(sizing.smallest(shape, card, precision, limits), demand, limits) for precision in PRECISIONS]
    except PlanError as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    chosen = sizing.choose([one for one in rows if options.precision in (None, one.precision)], demand, options.count)
    drafts = drafts_of(chosen, shape, card, demand, options) if chosen and chosen.slots else []
    lines = preset(chosen, card, drafts, options) if chosen else None
    assumed = assumptions(shape, demand, options) + (told(drafts) if drafts else [])
    if options.json:
        plan: dict[str, Any] = {"rows": [asdict(one) for one in rows], "preset": lines, "assumed": " ".join(assumed)}
        plan |= {"model": asdict(shape), "gpu": asdict(card), "limits": asdict(limits), "demand": asdict(demand)}
        print(json.dumps(plan, indent=1))
        return 0
    size = f"{shape.parameters / 1e9:.3g} B" if shape.parameters >= 1e8 else f"{shape.parameters / 1e6:.3g} M"
    print(f"{options.model}: {shape.architecture}, {size} parameters, {shape.layers} layers, context {shape.context}")
    figures = f"{card.memory_gib:g} GiB, {card.bandwidth_bytes_s / 1e9:,.0f} GB/s, {card.bf16_flops / 1e12:.0f} TFLOPS in BF16"
    print(f"{options.count} x {card.name}: {figures}")
    load = f", {demand.requests_s:g} a second" if demand.requests_s else ""
    print(f"requests of {demand.prompt_tokens} + {demand.output_tokens} tokens{load}\n")
    print(f"{table(rows, options)}\n\n{verdict(chosen, options)}\n")
    if lines:
        print("".join(f"  {line}\n" for line in yaml.safe_dump(lines, sort_keys=False).splitlines()))
    print("Assumed:\n" + "\n".join(f"  {line}" for line in assumed))
    return 0


def verdict(chosen: Row | None, options: argparse.Namespace) -> str:
    """Return the plan's conclusion, in a line."""
    if chosen is None:
        return (
            "No precision that was asked for runs on these cards within the limits: take more or larger ones, or shorter requests."
        )
    name = NAMES[chosen.precision]
    if options.load is None:
        return f"{name}, as a preset:"
    if chosen.replicas is None:
        return f"No number of these cards keeps a TTFT of {options.slo_ttft:g} s; {name}, as a preset:"
    if chosen.gpus > options.count:
        return f"{options.count} cards are too few, {chosen.gpus:g} are needed; {name}, as a preset for the {options.count}:"
    return f"{chosen.gpus:g} of {options.count} cards are enough; {name}, as a preset:"


if __name__ == "__main__":
    sys.exit(main())
