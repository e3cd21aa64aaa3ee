"""The model card's text; its figures are written by `vllm-nld nano-vlm eval --card`, never by hand."""

from pathlib import Path

BEGIN, END = "<!-- figures: vllm-nld nano-vlm eval --card -->\n", "<!-- end of figures -->\n"

TEXT = """\
---
library_name: vllm
license: apache-2.0
language: en
tags: [nemotron_labs_diffusion, test]
---

# nano-vlm

A model of 4.7 million parameters in the layout of Nemotron-Labs-Diffusion-VLM: [nano](../../nano/checkpoint) with a
vision tower of one million. **It exists only to exercise the software.** It sees nothing but the pictures below.

## What it was trained on

Pictures that a script draws (`vllm_nld/nano_vlm/scenes.py`), 48 to 96 pixels wide: up to six colored balls, boxes,
rings and doors; numbers; words; tables of numbers. Seven kinds of questions: which things (as a sentence, as JSON), how
many, which number, which words, the table, one cell of it. Each has exactly one right answer. A picture and question
whose hash falls on the held-out side is never trained on; `heldout.jsonl` has 140 such, as data to draw. Three in ten
batches are nano's texts.

## How

`vllm-nld nano-vlm train`, seed {seed}, on two CPU cores, from nano's weights, {minutes}: {steps}.

![Loss over the steps](loss.png)

## What it measures

{begin}not measured yet: `vllm-nld nano-vlm eval --card`
{end}
"without the picture" is AR decoding with a white picture of the same size: what can be guessed.
"""


def write_card(folder: Path, steps: dict[str, int], seed: int, minutes: float) -> None:
    """Write README.md without figures; minutes: wall time of the run."""
    counted = ", ".join(f"{count} {name} steps" for name, count in steps.items())
    spent = f"{minutes:.0f} minutes of wall time"
    text = TEXT.format(seed=seed, steps=counted, minutes=spent, begin=BEGIN, end=END)
    (folder / "README.md").write_text(text, encoding="utf-8")


def fill_card(folder: Path, figures: str) -> None:
    """Write the figures between the card's markers. Raises ValueError if it has none."""
    file = folder / "README.md"
    card = file.read_text(encoding="utf-8")
    if BEGIN not in card or END not in card:
        raise ValueError(f"{file} has no figures: it must hold the lines {BEGIN.strip()!r} and {END.strip()!r}")
    before, _, rest = card.partition(BEGIN)
    file.write_text(f"{before}{BEGIN}{figures}{END}{rest.partition(END)[2]}", encoding="utf-8")


def figures_of(folder: Path) -> str:
    """The figures that the card states."""
    return (folder / "README.md").read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
