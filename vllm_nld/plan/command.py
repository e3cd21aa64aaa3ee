"""`vllm-nld plan`: the fewest GPUs that meet P95 targets at a traffic, by kind of GPU and mode, and their cost.

    vllm-nld plan --model 8b --gpus H100 H200 --rate 20 --prompt lognormal:600,p95=2000 \\
        --output lognormal:300,p95=900 --p95-ttft 0.5 --p95-latency 15 --price H100=2.5 H200=3.5
    vllm-nld plan --model 8b --gpus H100 --trace log.jsonl --replicas 4
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm_nld.plan import acceptance, report, traffic
from vllm_nld.plan.fleet import ROUTERS
from vllm_nld.plan.front_end import Costs
from vllm_nld.plan.policies import POLICIES
from vllm_nld.plan.replica import Limits
from vllm_nld.plan.search import Scenario, fewest
from vllm_nld.plan.steps import Curves, Roofline, Work
from vllm_nld.plan.traffic import Request
from vllm_nld.roofline.costs import BYTES
from vllm_nld.roofline.devices import DEVICES, Device, group
from vllm_nld.roofline.published import ACCEPTANCE_LENGTHS, TPF
from vllm_nld.roofline.shapes import SHAPES, Shape, shape_of

UTILIZATION = 0.9  # of the GPU's memory that the server takes; vLLM's default
RESERVED = 2e9  # bytes for activations and graphs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld plan`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "Lengths: 512, uniform:100-900, exponential:300 or lognormal:600,p95=2000 (mean and P95)."
    parser.add_argument("--model", default="8b", help="3b, 8b, 14b, nano, or a checkpoint folder (default: 8b)")
    parser.add_argument(
        "--gpus", nargs="+", default=["H100"], metavar="KIND", help=f"one or more of {', '.join(DEVICES)}"
    )
    parser.add_argument("--modes", nargs="+", default=["ar", "linear", "auto"], help=", ".join(POLICIES))
    parser.add_argument("--block-length", type=int, default=32)
    demand = parser.add_argument_group("traffic")
    demand.add_argument("--rate", type=float, help="requests per second; with --trace: change its rate to this")
    demand.add_argument("--burstiness", type=float, default=1.0, help="1: Poisson (default); less: in bursts")
    demand.add_argument("--prompt", metavar="LENGTHS", default="lognormal:600,p95=2000", help="prompt tokens")
    demand.add_argument("--output", metavar="LENGTHS", default="lognormal:300,p95=900", help="output tokens")
    demand.add_argument("--lengths", type=Path, metavar="FILE", help="draw both lengths from this log instead")
    demand.add_argument("--trace", type=Path, metavar="FILE", help="CSV or JSONL with timestamps and token counts")
    demand.add_argument("--seconds", type=float, default=120.0, help="of traffic to simulate (default: 120)")
    goal = parser.add_argument_group("targets, in seconds")
    goal.add_argument("--p95-ttft", type=float, help="time to first token")
    goal.add_argument("--p95-tpot", type=float, help="time per output token after the first")
    goal.add_argument("--p95-latency", type=float, help="time to the last token")
    goal.add_argument("--replicas", type=int, help="simulate this fleet instead of searching for one")
    goal.add_argument("--max-replicas", type=int, default=4096)
    parser.add_argument("--price", nargs="+", default=[], metavar="KIND=PRICE", help="of one GPU for an hour")
    parser.add_argument("--acceptance", metavar="WHAT", help="tokens per round, JSON with curves, or a /metrics URL")
    parser.add_argument("--diffusion-tpf", type=float, default=TPF["diffusion"], help="tokens per forward of diffusion")
    parser.add_argument("--curves", nargs="+", default=[], metavar="KIND=FILE", help="measured step times")
    server = parser.add_argument_group("each replica")
    server.add_argument("--tensor-parallel-size", type=int, default=1)
    server.add_argument("--max-num-seqs", type=int, default=256)
    server.add_argument("--max-num-batched-tokens", type=int, default=8192)
    server.add_argument("--kv-tokens", type=int, help="tokens that its KV cache holds (default: what memory allows)")
    server.add_argument(
        "--front-end",
        type=float,
        nargs=3,
        metavar=("REQUEST", "STEP", "PIECE"),
        help="milliseconds of an API server's process for a request, for a step's outputs, and for each stream's part "
        "of them (default: those of --curves, else none)",
    )
    server.add_argument("--api-servers", type=int, default=1, help="its processes, as in --api-server-count")
    server.add_argument(
        "--overhead", type=float, default=0.0, help="seconds of a request beyond its steps and the API server"
    )
    parser.add_argument("--routing", choices=list(ROUTERS), default="two_choices")
    parser.add_argument("--shard", type=int, default=4, help="replicas to simulate at most (default: 4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw P95 by fleet size (needs matplotlib)")


def run(options: argparse.Namespace) -> int:
    """Print the plan. Returns the exit status: 1 if no fleet meets the targets, 2 for an option that can't be."""
    try:
        plan = plan_of(options)
    except ValueError as error:
        print(f"vllm-nld plan: {error}", file=sys.stderr)
        return 2
    print(report.text(plan))
    if options.json:
        options.json.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        from vllm_nld.plan.plot import draw

        draw(plan, options.plot)
    return 0 if any(row["figures"] for row in plan["rows"]) else 1


def plan_of(options: argparse.Namespace) -> dict[str, Any]:
    """Simulate every kind of GPU in every mode; plain data. Raises ValueError."""
    from tqdm import tqdm

    shape, prices = shape_of(options.model), named(options.price, float, "price")
    curves = named(options.curves, Path, "curves")
    demand, seconds, offered = demand_of(options)
    targets = targets_of(options)
    accepted = acceptance_of(options)
    for kind in options.gpus:
        if kind not in DEVICES:
            raise ValueError(f"--gpus {kind!r} is not one of {', '.join(DEVICES)}")
    for mode in options.modes:
        if mode not in POLICIES:
            raise ValueError(f"--modes {mode!r} is not one of {', '.join(POLICIES)}")
    rows = []
    for kind, mode in tqdm([(k, m) for k in options.gpus for m in options.modes], desc="fleets", unit="fleet"):
        device = group(DEVICES[kind], options.tensor_parallel_size)
        steps: Any = Roofline(shape, device)
        if kind in curves:
            steps = Curves.read(curves[kind], steps)
        scenario = Scenario(
            steps,
            limits_of(options, shape, device, steps, mode),
            POLICIES[mode],
            1 if mode == "ar" else options.block_length,
            accepted,
            demand,
            seconds,
            targets,
            options.block_length / options.diffusion_tpf - 1 if mode == "diffusion" else 1.0,
            options.tensor_parallel_size,
            front_of(options, steps),
            options.api_servers,
            options.overhead + getattr(steps, "request_ms", 0.0) / 1e3,
            options.routing,
            options.shard,
            options.seed,
        )
        count = options.replicas or fewest(scenario.meets, least_of(scenario, offered), options.max_replicas)
        rows.append(row_of(kind, mode, scenario, count, prices.get(kind)))
    return {
        "model": options.model,
        "traffic": described(options, offered),
        "targets": targets,
        "step_times": {kind: str(curves[kind]) if kind in curves else "roofline" for kind in options.gpus},
        "acceptance_length": accepted.tokens(options.block_length),
        "block_length": options.block_length,
        "shard": options.shard,
        "searched": options.replicas is None,
        "rows": rows,
    }


def row_of(kind: str, mode: str, scenario: Scenario, count: int | None, price: float | None) -> dict[str, Any]:
    """One line of the plan, and the fleets that were tried for it."""
    figures = None if count is None else scenario.run(count)
    tried = {str(n): asdict(found) for n, found in sorted(scenario.found.items()) if found is not None}
    return {
        "gpu": kind,
        "mode": mode,
        "replicas": count,
        "gpus": None if count is None else count * scenario.gpus,
        "figures": None if figures is None else asdict(figures) | {"saturated": figures.saturated},
        "cost_per_million": None if figures is None or price is None else figures.cost_per_million(price),
        "gpu_seconds_per_million": None if figures is None else figures.gpu_seconds_per_million,
        "tried": tried,
    }


def demand_of(options: argparse.Namespace) -> tuple[Callable[[float], list[Request]], float, float]:
    """The requests for a part of the fleet, the seconds that they span, and the output tokens per second of all."""
    if options.trace:
        requests = traffic.read_trace(options.trace)
        if options.rate:
            requests = traffic.at_rate(requests, options.rate)
        requests = [request for request in requests if request.arrival <= options.seconds]
        seconds = requests[-1].arrival
        if not seconds:
            raise ValueError(f"{options.trace}: all requests come at once: a plan needs traffic over some time")
        offered = sum(request.output for request in requests) / seconds
        return (lambda part: traffic.share(requests, part, random.Random(options.seed))), seconds, offered
    if not options.rate:
        raise ValueError("say how much traffic there is: --rate REQUESTS_PER_SECOND or --trace FILE")
    if options.lengths:
        prompts, outputs = traffic.drawn_from(traffic.read_trace(options.lengths))
    else:
        prompts, outputs = traffic.parse(options.prompt, "prompt"), traffic.parse(options.output, "output")

    def demand(part: float) -> list[Request]:
        source = random.Random(options.seed)
        return traffic.poisson(options.rate * part, options.seconds, prompts, outputs, source, options.burstiness)

    sample = demand(min(1.0, 1000 / (options.rate * options.seconds)))
    mean = sum(request.output for request in sample) / max(1, len(sample))
    return demand, options.seconds, options.rate * mean


def described(options: argparse.Namespace, offered: float) -> str:
    """The traffic, in words."""
    if options.trace:
        what = f"the trace {options.trace.name}" + (f" at {options.rate:g} requests/s" if options.rate else "")
    else:
        lengths = options.lengths.name if options.lengths else f"prompts {options.prompt}, outputs {options.output}"
        what = f"{options.rate:g} requests/s, {lengths}"
    return f"{what}: {offered:.0f} output tokens/s"


def targets_of(options: argparse.Namespace) -> dict[str, float]:
    """The P95 targets that were given."""
    found = {"ttft": options.p95_ttft, "tpot": options.p95_tpot, "latency": options.p95_latency}
    targets = {name: value for name, value in found.items() if value is not None}
    for name, value in targets.items():
        if not value > 0:
            raise ValueError(f"--p95-{name} must be above 0 seconds, not {value}")
    if options.replicas is not None and options.replicas < 1:
        raise ValueError(f"--replicas must be at least 1, not {options.replicas}")
    if not targets and options.replicas is None:
        raise ValueError("give a target (--p95-ttft, --p95-tpot, --p95-latency) or a fleet (--replicas)")
    return targets


def acceptance_of(options: argparse.Namespace) -> acceptance.Acceptance:
    """As given, or the published one of the released models."""
    if options.block_length < 2:
        raise ValueError(f"--block-length must be at least 2, not {options.block_length}")
    if options.acceptance:
        return acceptance.read(options.acceptance, options.block_length)
    if options.model not in SHAPES:
        raise ValueError(f"how well drafts of {options.model} are accepted isn't known: give --acceptance")
    curve = acceptance.survival_curve({32: ACCEPTANCE_LENGTHS["linear, LoRA"]})
    return acceptance.Acceptance({acceptance.ANY: curve.tolist()})


def limits_of(options: argparse.Namespace, shape: Shape, device: Device, steps: Any, mode: str) -> Limits:
    """A replica's limits. Raises ValueError if the model doesn't fit."""
    kv_tokens = options.kv_tokens or getattr(steps, "kv_tokens", None) or kv_tokens_of(shape, device)
    return Limits(options.max_num_seqs, options.max_num_batched_tokens, kv_tokens)


def front_of(options: argparse.Namespace, steps: Any) -> Costs:
    """What an API server's process takes: as given, or as measured with the curves, or nothing."""
    if options.api_servers < 1:
        raise ValueError(f"--api-servers must be at least 1, not {options.api_servers}")
    if options.front_end is None:
        return steps.front if isinstance(steps, Curves) else Costs()
    try:
        return Costs(*(ms / 1e3 for ms in options.front_end))
    except ValueError as error:
        raise ValueError(f"--front-end: {error}") from None


def kv_tokens_of(shape: Shape, device: Device) -> int:
    """How many tokens the KV cache holds beside the weights, in bfloat16."""
    room = device.memory * UTILIZATION - BYTES * shape.parameters - RESERVED * device.ranks
    tokens = int(room / (BYTES * shape.kv_values * shape.layers))
    if tokens < 1:
        need = (BYTES * shape.parameters + RESERVED) / UTILIZATION / 1e9
        has = f"{device.ranks} × {device.name}" if device.ranks > 1 else device.name
        raise ValueError(f"the model needs {need:.0f} GB, and {has} has {device.memory / 1e9:.0f}")
    return tokens


def least_of(scenario: Scenario, offered: float) -> int:
    """Fewer replicas than this cannot even decode the traffic, whatever the batch and the block length."""
    limits, best = scenario.limits, 0.0
    lengths = [1, *(2**power for power in range(1, 8) if 2**power < scenario.block)] if scenario.policy.by_load else []
    for requests in {*(2**power for power in range(16) if 2**power < limits.max_num_seqs), limits.max_num_seqs}:
        for length in {*lengths, scenario.block}:
            rows = requests * length
            drafted, yielded = rows if length > 1 else 0, scenario.acceptance.tokens(length)
            work = Work(requests=requests, verified=rows, context=requests, drafted=drafted, passes=scenario.passes)
            if rows <= limits.max_num_batched_tokens:
                tokens = length if scenario.policy.taken else yielded
                best = max(best, requests * tokens / scenario.steps.seconds(work))
    return max(1, math.floor(0.8 * offered / best)) if best else 1


def named(pairs: list[str], kind: Callable[[str], Any], option: str) -> Mapping[str, Any]:
    """KIND=VALUE options. Raises ValueError that names the option."""
    found = {}
    for pair in pairs:
        name, _, value = pair.rpartition("=")
        try:
            found[name] = kind(value)
        except ValueError:
            raise ValueError(f"--{option} {pair!r}: write KIND=VALUE, as in H100=2.5") from None
        if name not in DEVICES:
            raise ValueError(f"--{option} {pair!r}: {name!r} is not one of {', '.join(DEVICES)}")
    return found
