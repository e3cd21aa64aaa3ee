"""The time of a decode step: verify forward, draft forward, draft LoRA, sampling, host, by batch and block length.

Uses random weights of a released shape with as many layers as fit, and vLLM's synthetic acceptance set to the published
acceptance length: costs are real, acceptance is not. A full model's step is projected from it, layer by layer. Trees
are accepted by what the model samples.
"""

import argparse
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import verification
from bench.decoding import AR, CONTEXT, Decoder
from bench.engines import engines
from bench.parts import DRAFT, HOST, PARTS, PROPOSE, SAMPLING, VERIFY, watch
from bench.shapes import write
from vllm_nld.evaluate.spread import spread, table
from vllm_nld.nano import checkpoint_path
from vllm_nld.roofline.devices import cpu_rates
from vllm_nld.roofline.published import ACCEPTANCE_LENGTHS
from vllm_nld.roofline.shapes import SHAPES
from vllm_nld.tools.provenance import describe, provenance

HOST_SPANS = (SAMPLING, PROPOSE, HOST)
TREE_BLOCK = 32  # block length that trees grow from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=["nano", *SHAPES], default="3b", help="which model (default: 3b)")
    parser.add_argument("--layers", type=int, help="number of layers (default: 2; on a GPU all)")
    parser.add_argument("--batches", type=int, nargs="+", help="concurrent requests (default: 1 4; quick: 1)")
    parser.add_argument(
        "--blocks", type=int, nargs="+", help="block lengths, 1 is AR (default: 1 8 16 32; quick: 1 32)"
    )
    parser.add_argument(
        "--trees", type=int, nargs="+", default=[], metavar="NODES", help="also draft trees, from blocks of 32"
    )
    parser.add_argument("--steps", type=int, help="decode steps per configuration (default: 12, quick: 5)")
    parser.add_argument("--compile", action="store_true", help="use torch.compile (nano: always except with --quick)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Returns milliseconds of each step's spans, by block length and batch."""
    import torch

    blocks = options.blocks or ([AR, 32] if options.quick else [AR, 8, 16, 32])
    batches = options.batches or ([1] if options.quick else [1, 4])
    layers = options.layers or (1 if options.quick else SHAPES["3b"].layers if torch.cuda.is_available() else 2)
    result: dict[str, Any] = {
        "provenance": provenance(),
        "shape": options.shape,
        "layers": None if options.shape == "nano" else layers,
        "context": CONTEXT,
        "synthetic_acceptance_length": ACCEPTANCE_LENGTHS["linear, LoRA"],
        "verification": {},
        "spans": {},
        "trees": {},
        "lora": {},
        "cpu_rates": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        nano = options.shape == "nano"
        compiled = options.compile or nano and not options.quick  # eager is as fast where matrices are large
        model = checkpoint_path() if nano else write(Path(folder), SHAPES[options.shape], layers)
        with engines() as start:
            for block in tqdm(blocks, desc="engines", unit="engine"):
                engine = start(f"block length {block}", serve, model, block, 0, max(batches), compiled)
                steps = options.steps or (5 if options.quick else 12)
                result["spans"][str(block)] = {str(n): engine.ask("steps", n, steps) for n in batches}
                if block != AR:
                    result["lora"][str(block)] = {str(n): engine.ask("lora", n, steps) for n in batches}
                if not torch.cuda.is_available():  # alternate with the steps: a shared machine's rate varies
                    engine.pause()
                    result["cpu_rates"].append(cpu_rates())
                engine.close()  # the next one may need its memory
            for nodes in tqdm(options.trees, desc="engines with trees", unit="engine"):
                engine = start(f"tree of {nodes}", serve, model, TREE_BLOCK, nodes, max(batches), compiled)
                steps = options.steps or (5 if options.quick else 12)
                result["trees"][str(nodes)] = {str(n): engine.ask("steps", n, steps) for n in batches}
                engine.close()
    if options.shape != "nano":
        for kind, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            result["verification"][kind] = verification.milliseconds(temperature)
    print(report(result))
    return result


def report(result: dict[str, Any]) -> str:
    """Markdown: milliseconds of each span, and the projection to the full model."""
    layers = "" if result["layers"] is None else f", {result['layers']} layers of random weights"
    method = f"{result['shape']}{layers}, {CONTEXT} tokens of context. {describe(result['provenance'])}"
    parts = [method, "Milliseconds of a decode step, median (range):", spans_table(result)]
    times = [f"{kind} {spread(samples, 2)} ms" for kind, samples in result["verification"].items()]
    if times:
        parts.append(
            f"Verification only, {verification.ROWS} rows × {verification.VOCABULARY} tokens: {', '.join(times)}."
        )
    return "\n\n".join([*parts, *projection(result)])


def spans_table(result: dict[str, Any]) -> str:
    rows = []
    kinds = {"AR" if block == str(AR) else block: batches for block, batches in result["spans"].items()}
    kinds |= {f"{TREE_BLOCK}, tree of {nodes}": batches for nodes, batches in result.get("trees", {}).items()}
    for kind, batches in kinds.items():
        for batch, steps in batches.items():
            totals = [sum(step.values()) for step in steps]
            share = [sum(step.get(name, 0) for name in HOST_SPANS) / sum(step.values()) for step in steps]
            lora = result["lora"].get(kind, {}).get(batch, [])
            row = [kind, batch, spread(totals, 1)]
            row += [spread([step.get(name, 0) for step in steps], 2) for name in PARTS]
            rows.append([*row, spread(lora, 2), f"{statistics.median(share):.0%}"])
    return table(["block", "batch", "step", *PARTS, "draft LoRA (in draft forward)", "sampling and host share"], rows)


def projection(result: dict[str, Any]) -> list[str]:
    """A full model's tokens/s at the published acceptance lengths; empty if the whole model was measured."""
    if result["layers"] is None:
        return []
    depth, rows = SHAPES[result["shape"]].layers, []
    for batch in next(iter(result["spans"].values())):
        seconds = {block: full_step(result, block, batch, depth) / 1e3 for block in result["spans"]}
        for block in result["spans"]:
            if block != str(AR):
                row = [block, batch, f"{int(batch) / seconds[str(AR)]:.2f}"]
                for length in ACCEPTANCE_LENGTHS.values():
                    rate = int(batch) * min(length, int(block)) / seconds[block]
                    row.append(f"{rate:.2f} (× {rate * seconds[str(AR)] / int(batch):.2f})")
                rows.append(row)
    header = ["block", "batch", "AR", *(f"{name}, AL {length}" for name, length in ACCEPTANCE_LENGTHS.items())]
    return [f"Tokens/s projected to all {depth} layers at published acceptance lengths (× AR):", table(header, rows)]


def full_step(result: dict[str, Any], block: str, batch: str, depth: int) -> float:
    """Milliseconds of a step with `depth` layers: forwards scale with the layers, the rest doesn't."""
    steps = result["spans"][block][batch]
    middle = {name: statistics.median(step.get(name, 0) for step in steps) for name in PARTS}
    forwards = middle[VERIFY] + middle[DRAFT]
    return sum(middle.values()) + forwards * (depth / result["layers"] - 1)


# The child process


def serve(model: Path, block: int, nodes: int, batch: int, compiled: bool, pipe: Connection) -> None:
    """Load the engine, warm it up and answer questions. `nodes`: of trees; 0: chains."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # keeps the worker in this process, where it can be timed
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM

    nld: dict[str, Any] = {"mode": "ar"} if block == AR else {"mode": "linear", "tree_nodes": nodes}
    settings: dict[str, Any] = {"additional_config": {"nld": nld}}
    if block != AR and not nodes:
        settings["speculative_config"] = {
            "method": "draft_model",
            "model": str(model),
            "num_speculative_tokens": block - 1,
            "rejection_sample_method": "synthetic",
            "synthetic_acceptance_length": min(ACCEPTANCE_LENGTHS["linear, LoRA"], block),
        }
    llm = LLM(
        str(model),
        load_format="auto" if model == checkpoint_path() else "dummy",
        max_num_seqs=batch,
        max_model_len=1024,
        enforce_eager=not compiled,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        **settings,
    )
    probe = Probe(llm, nodes + 1 if nodes else block)
    probe.steps(batch, 3)
    pipe.send("ready")
    while True:
        question, requests, count = pipe.recv()
        pipe.send(probe.steps(requests, count) if question == "steps" else probe.lora(requests, count))


class Probe:
    """Times the parts of an engine's steps. rows: of a request, in the target's forward."""

    def __init__(self, llm: Any, rows: int) -> None:
        import torch

        self.rows = rows
        self.synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
        self.spans = watch(llm)
        self.decoder = Decoder(llm)
        self.runner = self.decoder.runner

    def steps(self, requests: int, count: int) -> list[dict[str, float]]:
        """Milliseconds by span for `count` decode steps of a full batch."""
        tokens = int((count + 2) * self.rows)  # enough that no request ends before all steps are measured
        samples: list[dict[str, float]] = []
        with self.decoder.running(requests, self.rows, tokens) as step:
            while len(samples) <= count:
                full, spent = step(), self.spans.take()
                if full:
                    samples.append({name: seconds * 1e3 for name, seconds in spent.items()})
        self.spans.take()
        return samples[1:]  # the first step includes part of the prefill

    def lora(self, requests: int, count: int) -> list[float]:
        """Milliseconds of the draft adapter alone, over all layers, in a draft pass of `requests` blocks."""
        import torch

        from vllm_nld.model.draft_lora import DraftLora

        loras = [module for module in self.runner.model.pathway.modules() if isinstance(module, DraftLora)]
        inputs = [torch.randn(requests * self.rows, lora.down.input_size).to(lora.switch) for lora in loras]
        samples = []
        with torch.inference_mode(), self.runner.model.drafting():
            for _ in range(count + 2):
                self.synchronize()
                begin = time.perf_counter()
                for lora, given in zip(loras, inputs, strict=True):
                    lora(given)
                self.synchronize()
                samples.append((time.perf_counter() - begin) * 1e3)
        return samples[2:]
