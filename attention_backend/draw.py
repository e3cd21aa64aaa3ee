"""`vllm-nld masks`: a labelled picture of every mask, query by key."""

import argparse
import sys
from pathlib import Path

from attention_backend.masks import Block, BlockCausal, Causal, Mask, QuadraticGroups, Tree

CACHED = 3
EXAMPLES: tuple[tuple[str, Mask], ...] = (
    ("causal: prefill, verify, commit", Causal(8)),
    ("block: draft, denoise", Block(8)),
    ("block-causal: consecutive blocks", BlockCausal(8, 4)),
    ("quadratic groups: one per number of accepted drafts", QuadraticGroups.full(3)),
    ("sparse groups: for the likeliest numbers", QuadraticGroups(4, (3, 1), 4)),
    ("tree: verify several paths at once", Tree((-1, 0, 0, 1, 1, 2, 3, 6))),
)


def draw(out: Path) -> None:
    """Write an image with one panel per mask; dark means that the query (row) attends to the key (column)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator

    figure, panels = pyplot.subplots(2, 3, figsize=(18, 12), layout="constrained")
    for panel in panels.flat[len(EXAMPLES) :]:
        panel.set_axis_off()
    for panel, (title, mask) in zip(panels.flat, EXAMPLES, strict=False):
        rows = [mask.label(token) for token in range(mask.length)]
        columns = [f"c{index}" for index in range(CACHED)] + rows
        panel.imshow(mask.dense(CACHED), cmap="Blues", vmin=0, vmax=1.3, aspect="equal")
        panel.set_title(f"{title}\n{mask}")
        panel.set_xticks(range(len(columns)), columns, rotation=90)
        panel.set_yticks(range(len(rows)), rows)
        panel.set_xlabel(f"key (c: the {CACHED} cached tokens)")
        panel.set_ylabel("query")
        panel.axvline(CACHED - 0.5, color="black")
        panel.xaxis.set_minor_locator(FixedLocator([index - 0.5 for index in range(len(columns))]))
        panel.yaxis.set_minor_locator(FixedLocator([index - 0.5 for index in range(len(rows))]))
        panel.grid(which="minor", color="lightgrey", linewidth=0.5)
        panel.tick_params(which="minor", length=0)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld masks`."""
    parser.add_argument("--out", type=Path, default=Path("masks.png"), help="the image to write (default: masks.png)")


def run(args: argparse.Namespace) -> int:
    """Draw the masks and return the exit status."""
    try:
        draw(args.out)
    except ModuleNotFoundError as error:
        print(f"{error}: pip install 'vllm-nld[bench]'", file=sys.stderr)
        return 1
    print(f"Written to {args.out}.")
    return 0
