"""What a decode step costs on this device, by concurrency and block length, and where its time goes.

A released shape in full with random weights, on a server in mode `auto`: it has graphs for every block length, so one
engine measures all. Acceptance is that of random weights, near none, which changes a step's yield but not its cost.
"""

import contextlib
import dataclasses
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.decoding import AR, CONTEXT, Decoder
from bench.gpu_check.busy import idle
from bench.gpu_check.controller import choices
from bench.gpu_check.record import DIFF, FIGURE, OK, Check, Finding, Setting, Subject
from bench.parts import DRAFT, DRAFT_LOGITS, HOST, PARTS, VERIFY, VERIFY_LOGITS, watch
from bench.shapes import write, write_stock
from vllm_nld.roofline.costs import Mode, Model, step_seconds
from vllm_nld.roofline.devices import Device, gpu_rates, named, rates
from vllm_nld.roofline.shapes import SHAPES, Shape

CONCURRENCIES, BLOCKS = (1, 4, 16, 64), (1, 8, 16, 32)
GAPS = 0.05  # share of a step in which the device may wait for the host
ROOFLINE = 0.5  # a step off the roofline by more is to be read
RATES = 0.25  # and an entry of the table of devices
WEIGHTS = 1.1  # times a model's weights, adapter included: both pathways share them
GRAPHS = 0.02  # of the device's memory, for the graphs of draft passes
TINY = Shape(128, 256, 2, heads=4, kv_heads=2, head_dim=32, vocabulary=1024, rank=8)
DRAFTING, PLAIN, STOCK = "8b", "8b, AR only", "8b, stock Mistral"
GIB = 2**30


@dataclasses.dataclass
class Engine:
    """An engine and what was measured on it."""

    llm: Any
    setting: Setting
    model: Model
    device: Device
    stock: bool
    seconds: float
    graphs: dict[str, int]  # bytes that capturing graphs has taken
    cells: dict[tuple[int, int], dict[str, Any]] = dataclasses.field(
        default_factory=dict
    )  # by concurrency and block length

    def __post_init__(self) -> None:
        self.decoder = Decoder(self.llm)

    @property
    def summary(self) -> str:
        return f"started in {self.seconds:.0f} s; roofline of {self.device.name}"


def cells(setting: Setting) -> list[tuple[int, int]]:
    """Concurrency and block length, the most important first."""
    concurrencies, blocks = ((1, 4), (1, 8)) if setting.quick else (CONCURRENCIES, BLOCKS)
    return [(requests, block) for requests in concurrencies for block in blocks]


@contextlib.contextmanager
def open_engine(kind: str, setting: Setting) -> Iterator[Engine]:
    """One of the three servers, with vLLM's default settings on a GPU."""
    from vllm import LLM

    shape = SHAPES["8b"] if setting.gpu else TINY
    most = max(requests for requests, _ in cells(setting))
    options: dict[str, Any] = {"load_format": "dummy", "dtype": "bfloat16", "skip_tokenizer_init": True}
    if not setting.gpu:
        options["enforce_eager"] = True
        options |= {"block_size": 32, "max_num_seqs": most, "max_model_len": 2048}
        options |= {"kv_cache_memory_bytes": 2**26, "gpu_memory_utilization": 0.1}
    if kind != STOCK:
        options["additional_config"] = {"nld": {"mode": "ar" if kind == PLAIN else "auto"}}
    with tempfile.TemporaryDirectory() as folder, graph_memory(setting) as graphs:
        model = (write_stock if kind == STOCK else write)(Path(folder), shape, shape.layers)
        begun = time.perf_counter()
        with patch.dict(os.environ, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}):
            llm: Any = LLM(str(model), **(options | setting.options))
        seconds, whole = time.perf_counter() - begun, Model.whole(shape, CONTEXT)
        try:
            yield Engine(llm, setting, whole, device_of(setting), kind == STOCK, seconds, graphs)
        finally:
            llm.llm_engine.engine_core.shutdown()


def device_of(setting: Setting) -> Device:
    """The data sheet of this device, or its measured rates."""
    import torch

    if setting.gpu and (known := named(torch.cuda.get_device_name())) is not None:
        return known
    return Device("measured rates", *rates_of(setting), memory_efficiency=1.0, compute_efficiency=1.0)


def rates_of(setting: Setting) -> tuple[float, float]:
    """Measured bytes and FLOP per second."""
    return gpu_rates() if setting.gpu else rates("cpu", rows=16, size=1024)


@contextlib.contextmanager
def graph_memory(setting: Setting) -> Iterator[dict[str, int]]:
    """How much device memory capturing takes: of all graphs, and of the draft passes' alone."""
    import torch
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    from spec_worker.speculator import SelfSpeculator

    found: dict[str, int] = {}

    def watched(name: str, capture: Any) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            before = torch.cuda.mem_get_info()[0]
            out = capture(*args, **options)
            found[name] = before - torch.cuda.mem_get_info()[0]
            return out

        return run

    with contextlib.ExitStack() as stack:
        for name, owner, method in (("all", GPUModelRunner, "capture_model"), ("drafts", SelfSpeculator, "capture")):
            if setting.gpu:
                stack.enter_context(patch.object(owner, method, watched(name, getattr(owner, method))))
        yield found


# Checks


def memory(engine: Engine) -> Finding:
    """Where the device's memory goes at the default settings. Draft passes share the weights, and have few graphs."""
    import torch

    worker = engine.llm.llm_engine.model_executor.driver_worker.worker
    cache = engine.llm.llm_engine.vllm_config.cache_config
    weights = sum(weight.nbytes for weight in worker.model_runner.model.parameters())
    found = {
        "weights": weights,
        "KV cache": getattr(worker, "available_kv_cache_memory_bytes", None),
        "activations": getattr(worker, "peak_activation_memory", None),
        "graphs": engine.graphs.get("all"),
        "of them draft graphs": engine.graphs.get("drafts"),
    }
    known = ", ".join(f"{name} {size / GIB:.3g} GiB" for name, size in found.items() if size is not None)
    tokens = (cache.num_gpu_blocks or 0) * cache.block_size
    wrong = []
    if weights > WEIGHTS * engine.model.shape.parameters * 2:
        wrong.append("weights are there more than once")
    if (
        engine.setting.gpu
        and engine.graphs.get("drafts", 0) > GRAPHS * torch.cuda.get_device_properties(0).total_memory
    ):
        wrong.append(f"draft graphs take more than {GRAPHS:.0%} of the device")
    text = f"{'; '.join(wrong)}{': ' if wrong else ''}{known}; {tokens} tokens of KV cache"
    return Finding(DIFF if wrong else OK, text, found | {"tokens": tokens})


def cell(requests: int, block: int, engine: Engine) -> Finding:
    """One load."""
    found = engine.cells[requests, block] = measured(requests, block, engine)
    return judged(found, engine.setting)


def measured(requests: int, block: int, engine: Engine) -> dict[str, Any]:
    """A step's time as it is, its parts, how much of it the device idles, and what the roofline says."""
    steps, parted, profiled = (4, 2, 2) if engine.setting.quick else (24, 8, 4)
    mode: dict[str, Any] = {"nld_mode": "ar"}
    if block != AR:
        mode = {"nld_mode": "linear", "nld_block_length": block}
    tokens = (steps + parted + profiled + 8) * block
    with engine.decoder.running(requests, block, tokens, None if engine.stock else mode) as step:
        settle(step)
        milliseconds = period(step, steps)
        parts = parts_of(engine, step, parted)
        waits = idle(engine.setting.device, step, profiled)
    costs = Mode("", (block,) if block == AR else (block, block), tokens=1, adapter=block != AR)
    predicted = step_seconds(engine.model, engine.device, costs, requests) * 1e3
    return {"ms": milliseconds, "roofline": predicted, "parts": parts, "idle": waits}


def judged(found: dict[str, Any], setting: Setting) -> Finding:
    """A load's time against the roofline, which says nothing of a CPU that is shared."""
    off = found["ms"] / found["roofline"] - 1
    idled = "unknown" if found["idle"] is None else f"{found['idle']:.1%}"
    where = ", ".join(f"{name} {found['parts'][name]:.2f}" for name in PARTS if name in found["parts"])
    text = f"{found['ms']:.2f} ms a step, roofline {found['roofline']:.2f} ({off:+.0%})"
    verdict = FIGURE if not setting.gpu else DIFF if abs(off) > ROOFLINE else OK
    return Finding(verdict, f"{text}; device idle {idled}; parts by themselves: {where}", found)


def period(step: Any, count: int) -> float:
    """Median milliseconds from one step's output to the next one's, with as much overlap as in a server."""
    arrived = [time.perf_counter()]
    for _ in range(count):
        step()
        arrived.append(time.perf_counter())
    return 1e3 * statistics.median(after - before for before, after in pairwise(arrived))


def settle(step: Any) -> None:
    """Decode until the whole batch has decoded several times in a row."""
    full = 0
    for _ in range(400):
        full = full + 1 if step() else 0
        if full == 3:
            return
    raise RuntimeError("the batch did not decode together within 400 steps")


def parts_of(engine: Engine, step: Any, count: int) -> dict[str, float]:
    """Median milliseconds by part, each with the device's time of its own: together more than a step takes."""
    samples: defaultdict[str, list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        spans = watch(engine.llm, lambda *change: stack.enter_context(patch.object(*change)))
        for _ in range(count):
            step()
            for name, seconds in spans.take().items():
                samples[name].append(seconds * 1e3)
    return {name: statistics.median(values) for name, values in samples.items()}


def host_gaps(engine: Engine) -> Finding:
    """The device waits for the host in a small share of each step."""
    found = {key: one["idle"] for key, one in engine.cells.items() if one["idle"] is not None}
    if not found:
        return Finding(DIFF, "the profiler saw no kernels")
    (requests, block), worst = max(found.items(), key=lambda item: item[1])
    text = f"at most {worst:.1%} idle, at concurrency {requests} with blocks of {block}; allowed {GAPS:.0%}"
    if not engine.setting.gpu:
        return Finding(FIGURE, f"{text} on a GPU", worst)
    return Finding(OK if worst <= GAPS else DIFF, text, worst)


def efficiency(engine: Engine) -> Finding:
    """What the roofline's table of devices should say about this one, from the two extreme loads, and its rates."""
    read, compute = rates_of(engine.setting)
    sheet = engine.device
    bare = dataclasses.replace(sheet, launch=0.0, host=0.0, memory_efficiency=1.0, compute_efficiency=1.0)
    forwards = {
        key: one["parts"].get(VERIFY, 0) + one["parts"].get(VERIFY_LOGITS, 0) for key, one in engine.cells.items()
    }
    found: dict[str, float] = {"bandwidth": read, "flops": compute}
    for name, key in (("memory_efficiency", min(forwards)), ("compute_efficiency", max(forwards))):
        requests, block = key
        ideal = step_seconds(engine.model, bare, Mode("", (block,), tokens=1), requests) * 1e3
        found[name] = ideal / forwards[key]
    found["host"] = engine.cells[min(engine.cells)]["parts"].get(HOST, 0) / 1e3
    should = ", ".join(
        f"{name} {found[name]:.2g} (it says {getattr(sheet, name):.2g})"
        for name in ("memory_efficiency", "compute_efficiency", "host")
    )
    text = f"products reach {read / 1e12:.3g} TB/s and {compute / 1e12:.3g} TFLOP/s"
    text = f"{text}; vllm_nld/roofline/devices.py should say of {sheet.name}: {should}"
    off = max(abs(found[name] / getattr(sheet, name) - 1) for name in ("memory_efficiency", "compute_efficiency"))
    return Finding(FIGURE if not engine.setting.gpu else DIFF if off > RATES else OK, text, found)


def adapter(engine: Engine) -> Finding:
    """What a draft forward takes more than a verify forward of the same rows: the adapter, and the lack of a graph."""
    found = {}
    for (requests, block), one in engine.cells.items():
        if block != AR:
            ours, theirs = (one["parts"].get(name, 0.0) for name in (DRAFT, VERIFY))
            found[f"{requests} × {block}"] = ours / theirs if theirs else 0.0
    text = ", ".join(f"{key}: {value:.2f}" for key, value in found.items())
    worst = max(found.values())
    verdict = FIGURE if not engine.setting.gpu else OK if worst <= 1.5 else DIFF
    logits = max(one["parts"].get(DRAFT_LOGITS, 0.0) for one in engine.cells.values())
    return Finding(verdict, f"draft forward / verify forward at {text}; draft logits up to {logits:.2f} ms", found)


def subjects(setting: Setting) -> Iterator[Subject]:
    loads = [Check(f"{n} × {b}", "the cost of a load", partial(cell, n, b), 60) for n, b in cells(setting)]
    summary = (
        Check("host gaps", "the device is what costs money", host_gaps),
        Check("draft forward", "a draft pass costs what a verify pass does", adapter),
        Check("rates", "roofline and tables should fit this device", efficiency),
        Check("choices of auto", "the controller's costs are those of real steps", choices),
    )
    first = (Check("memory", "the second pathway must leave room for the KV cache", memory),)
    yield Subject(DRAFTING, "cost", partial(open_engine, DRAFTING), (*first, *loads, *summary), 300, alone=True)
    plain = tuple(load for load, (_, block) in zip(loads, cells(setting), strict=True) if block == AR)
    for name in (STOCK, PLAIN):
        yield Subject(name, "cost", partial(open_engine, name), plain, 300, alone=True)
