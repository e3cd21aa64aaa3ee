"""Loss and acceptance length over the steps, as a picture."""

from collections.abc import Sequence
from pathlib import Path


def draw(history: Sequence[dict[str, float]], file: Path) -> None:
    """Write the plot; does nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axes, names in ((left, ("loss",)), (right, ("al", "heldout"))):
        for name in names:
            points = [(row["step"], row[name]) for row in history if name in row]
            axes.plot(*zip(*points, strict=True), "o-" if name == "heldout" else "-", label=name) if points else None
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend()
    left.set_ylabel("loss per block")
    right.set_ylabel("acceptance length")
    figure.savefig(file)
    pyplot.close(figure)
