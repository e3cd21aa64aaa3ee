"""What a step of an engine takes: by the roofline, or by curves that were measured on the device.

    steps = Roofline(SHAPES["8b"], DEVICES["H100"])
    steps.seconds(Work(requests=4, verified=128, drafted=128, passes=1, context=4000))
    steps = Curves.read(Path("h100.json"), steps)   # of `python -m bench gpu_check --json`, or of its own format

Curves are ratios to the roofline, by number of requests and rows per request, so that loads between the measured ones
are covered too. What longer contexts add is the roofline's.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from vllm_nld.plan.front_end import Costs
from vllm_nld.roofline.costs import layer_seconds, logits_seconds
from vllm_nld.roofline.devices import Device
from vllm_nld.roofline.shapes import SHAPES, Shape

GPU_CHECK_CONTEXT = 128  # prompt tokens of the requests that gpu-check times


class Work(NamedTuple):
    """The rows of one step."""

    prompt: int = 0  # prompt tokens that it computes
    prompt_pairs: float = 0.0  # pairs of a prompt token and one that it sees
    prompts: int = 0  # requests whose prompt it ends
    requests: int = 0  # that decode
    verified: int = 0  # their rows in the target forward
    context: int = 0  # their cached tokens
    drafted: int = 0  # rows of a draft pass
    passes: float = 0.0  # draft passes


class Steps(Protocol):
    """Step times of one replica."""

    def seconds(self, work: Work) -> float: ...


@dataclass(frozen=True, slots=True)
class Roofline:
    """Step times of the analytic model. device: all GPUs of a replica, see `devices.group`."""

    shape: Shape
    device: Device

    def seconds(self, work: Work) -> float:
        """The draft passes, then the target forward with prompts and verified rows."""
        per_request = work.verified / work.requests if work.requests else 0.0
        tokens, logits = work.prompt + work.verified, work.verified + work.prompts
        pairs = work.prompt_pairs + per_request * work.context + work.verified * per_request
        total = self._forward(tokens, work.context, pairs, logits)
        if work.drafted and work.passes:
            drafting = max(work.requests, 1)
            pairs = work.drafted / drafting * (work.context + work.drafted)
            total += work.passes * self._forward(work.drafted, work.context, pairs, work.drafted, adapter=True)
        return total

    def _forward(self, tokens: float, cached: float, pairs: float, logits: float, adapter: bool = False) -> float:
        layer = layer_seconds(self.shape, self.device, tokens, cached, pairs, adapter)
        return self.shape.layers * layer + logits_seconds(self.shape, self.device, logits) + self.device.host


@dataclass(frozen=True, slots=True)
class Curves:
    """Measured step times.

    cells: milliseconds by number of requests and block length (1: AR); every combination must be there.
    context: tokens cached by each request when they were measured.
    prompts: milliseconds of a step that computes prompts of so many tokens alone; None: as the cells suggest.
    kv_tokens: tokens that the KV cache holds; None: not measured.
    front: what the API server takes. request_ms: what a request takes beyond that and its steps: the network.
    """

    base: Roofline
    cells: Mapping[tuple[int, int], float]
    context: int = GPU_CHECK_CONTEXT
    prompts: Mapping[int, float] = field(default_factory=dict)
    kv_tokens: int | None = None
    request_ms: float = 0.0
    front: Costs = Costs()
    _grid: tuple[np.ndarray, np.ndarray, np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        counts, blocks = (sorted({key[place] for key in self.cells}) for place in (0, 1))
        missing = [(n, b) for n in counts for b in blocks if (n, b) not in self.cells]
        if not self.cells or missing:
            lacks = f"{missing[0][0]} requests with blocks of {missing[0][1]}" if missing else "all cells"
            raise ValueError(f"the measured step times lack {lacks}: measure every combination")
        ratios = [[self.cells[n, b] / 1e3 / self.base.seconds(self._work(n, b)) for b in blocks] for n in counts]
        if min(map(min, ratios)) <= 0:
            raise ValueError("the measured step times must be above 0")
        logs = np.log(counts), np.log([rows_per_request(block) for block in blocks])
        object.__setattr__(self, "_grid", (*logs, np.array(ratios)))

    def _work(self, requests: int, block: int) -> Work:
        drafted = requests * block if block > 1 else 0
        return Work(
            requests=requests, verified=requests * block, context=requests * self.context, drafted=drafted, passes=1
        )

    def seconds(self, work: Work) -> float:
        if not work.requests:
            return self._prompt_alone(work)
        alone = work._replace(prompt=0, prompt_pairs=0.0, prompts=0)
        like_cells = alone._replace(context=work.requests * self.context)
        total = self.base.seconds(like_cells) * self._ratio(
            work.requests, (work.verified + work.drafted) / work.requests
        )
        total += self.base.seconds(alone) - self.base.seconds(like_cells)  # the cache alone depends on the context
        if not work.prompt:
            return total
        if self.prompts:
            return total + self._prompt_ms(work.prompt, alone=False) / 1e3
        return total + (self.base.seconds(work) - self.base.seconds(alone)) * float(self._grid[2][-1, -1])

    def _prompt_alone(self, work: Work) -> float:
        if self.prompts:
            return self._prompt_ms(work.prompt, alone=True) / 1e3
        return self.base.seconds(work) * float(self._grid[2][-1, -1])

    def _ratio(self, requests: float, rows: float) -> float:
        """Measured by predicted time, interpolated between cells; the nearest cell's outside of them."""
        counts, sizes, ratios = self._grid
        by_count = [float(np.interp(np.log(rows), sizes, row)) for row in ratios]
        return float(np.interp(np.log(requests), counts, by_count))

    def _prompt_ms(self, tokens: int, alone: bool) -> float:
        """A prompt's milliseconds, beyond a step's fixed part if it isn't alone in it."""
        sizes = sorted(self.prompts)
        times = [self.prompts[size] for size in sizes]
        slope = (times[-1] - times[0]) / (sizes[-1] - sizes[0]) if len(sizes) > 1 else 0.0
        fixed = max(0.0, times[0] - slope * sizes[0])
        if tokens >= sizes[-1]:
            found = times[-1] + slope * (tokens - sizes[-1])
        else:
            found = float(np.interp(tokens, [0, *sizes], [fixed, *times]))
        return found if alone else max(0.0, found - fixed)

    @classmethod
    def read(cls, file: Path, base: Roofline) -> "Curves":
        """Curves from JSON. Raises ValueError that names the file."""
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
            if "findings" in raw:
                if base.shape != SHAPES["8b"] or base.device.ranks != 1:
                    raise ValueError("gpu-check measures the 8B shape on one GPU, which is not what the plan is for")
                return cls(base, *from_gpu_check(raw["findings"]))
            return cls(
                base,
                {(int(cell["requests"]), int(cell["block"])): float(cell["ms"]) for cell in raw["cells"]},
                int(raw.get("context", GPU_CHECK_CONTEXT)),
                {int(row["tokens"]): float(row["ms"]) for row in raw.get("prompts", ())},
                raw.get("kv_tokens"),
                float(raw.get("request_ms", 0.0)),
                Costs(**{name: float(ms) / 1e3 for name, ms in raw.get("front_end_ms", {}).items()}),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} has no usable step times: {error!r}") from None


def from_gpu_check(
    findings: Mapping[str, Any],
) -> tuple[dict[tuple[int, int], float], int, dict[int, float], int | None]:
    """Cells, context, prompts and KV tokens from the findings of gpu-check's 8B shape."""
    cells = {}
    for line, finding in findings.items():
        if (found := re.fullmatch(r"8b: (\d+) × (\d+)", line)) and finding["data"]:
            cells[int(found[1]), int(found[2])] = float(finding["data"]["ms"])
    memory = findings.get("8b: memory", {}).get("data") or {}
    return cells, GPU_CHECK_CONTEXT, {}, memory.get("tokens")


def rows_per_request(block: int) -> int:
    """The rows of a request's step: a block to verify and one to draft; 1 in AR."""
    return 1 if block == 1 else 2 * block


def sizes_up_to(most: int) -> Sequence[int]:
    """1, 4, 16, ..., and the most: the numbers of requests that a server measures at start-up for `auto`."""
    return [*(4**power for power in range(12) if 4**power < most), most]
