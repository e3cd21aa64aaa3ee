"""The table of figures by GPU in docs/benchmarks.md, from the stored results of gpu-check.

python -m bench gpu_check --json bench/results/gpu/h100.json && python -m bench.readme
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from bench.results import RESULTS
from vllm_nld.evaluate.spread import table
from vllm_nld.roofline.devices import named

STORED = RESULTS / "gpu"
EXPECTED = ("H100", "H200", "B200")  # rows that are there before anything is measured
STEPS = {"AR at 1": "1 × 1", "B 32 at 1": "1 × 32", "B 16 at 16": "16 × 16", "B 8 at 64": "64 × 8"}
METHOD = """\
`make gpu-check` on an 8B shape with random weights, bf16, CUDA graphs: milliseconds of a step by block length and
concurrency, an AR-only server's AR step relative to stock vLLM's Mistral, the largest share of a step in which the GPU
waits for the host, and the tokens that the KV cache holds. No row has been measured unless it says when."""


def section(folder: Path = STORED) -> str:
    """The section; rows without figures say so."""
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    by_name = {name_of(result): result for result in results}
    names = list(dict.fromkeys((*EXPECTED, *by_name)))
    rows = [row(name, by_name[name]) if name in by_name else [name, *["–"] * 7, "not measured"] for name in names]
    header = ["GPU", *(f"{step}, ms" for step in STEPS), "AR / stock", "waits", "KV tokens", "date, findings"]
    return f"### Figures by GPU\n\n{METHOD}\n\n{table(header, rows)}"


def name_of(result: dict[str, Any]) -> str:
    """The device's short name, or what its driver calls it."""
    name = str(result["provenance"]["machine"]["gpu"])
    known = named(name)
    return name if known is None else known.name


def row(name: str, result: dict[str, Any]) -> list[str]:
    """One device's figures; a dash where its run has none."""
    found = result["findings"]

    def data(line: str) -> Any:
        return found.get(line, {}).get("data")

    cells = [data(f"8b: {step}") for step in STEPS.values()]
    share, waits, memory = (
        data(line) for line in ("AR step at 1, AR-only server / stock", "8b: host gaps", "8b: memory")
    )
    count = Counter(one["verdict"] for one in found.values())
    verdicts = ", ".join(f"{count[verdict]} {verdict}" for verdict in ("OK", "DIFF", "FAIL") if count[verdict])
    return [
        name,
        *("–" if cell is None else f"{cell['ms']:.2f}" for cell in cells),
        "–" if share is None else f"{share:.3f}",
        "–" if waits is None else f"{waits:.1%}",
        "–" if memory is None else str(memory["tokens"]),
        f"{result['date']}: {verdicts}",
    ]
