"""P95 by fleet size, one line per kind of GPU and mode: `vllm-nld plan --plot FILE`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_nld.plan.figures import LATENCIES


def draw(plan: Mapping[str, Any], file: Path) -> None:
    """Write the plot. Raises SystemExit if matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install 'vllm-nld[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(plan["targets"]) or ["latency"]
    figure, axes = pyplot.subplots(1, len(names), figsize=(6 * len(names), 4), layout="constrained", squeeze=False)
    for name, plane in zip(names, axes[0], strict=True):
        for row in plan["rows"]:
            tried = row["tried"].values()
            sizes, values = [found["gpus"] for found in tried], [found["p95"][name] for found in tried]
            plane.plot(sizes, values, "o-", label=f"{row['gpu']}, {row['mode']}")
        if name in plan["targets"]:
            plane.axhline(plan["targets"][name], color="black", lw=1, ls="--")
        scale = "log" if any(row["tried"] for row in plan["rows"]) else "linear"  # an empty plot has no logarithms
        plane.set(xlabel="GPUs", ylabel=f"P95 {LATENCIES[name]}, s", xscale=scale, yscale=scale)
        plane.grid(alpha=0.3)
        plane.legend(fontsize="small")
    figure.suptitle(f"{plan['model']}, {plan['traffic']}", fontsize="small")
    figure.savefig(file)
    pyplot.close(figure)
