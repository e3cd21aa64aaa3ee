"""The model card's text; its figures are written by `vllm-nld nano-vlm eval --card`, never by hand."""

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

Pictures that a script draws (`vllm_nld/nano_vlm/scenes.py`), 48 to 96 pixels wide: up to six balls, boxes, rings and
doors, each of another color; numbers; words; tables of a word and a few numbers a row. Letters stand 8 pixels apart,
which is what one image token covers. Seven kinds of questions: which things (as a sentence, as JSON), how many of one
kind, which number, which words, the table, one cell of it. Each has exactly one right answer, in reading order. To
count, it names all things and counts along: `red ball 1, blue box, green ball 2: 2`. A picture and question whose hash
falls on the held-out side is never trained on; `heldout.jsonl` has 140 such, as data to draw.

## How

`vllm-nld nano-vlm train`, seed {seed}, in one process on one CPU core, from nano's weights, {minutes}: {steps}.

The sight stage trains the tower and the projector alone. The script knows what it drew in each cell of a picture: a
thing's color and kind, a digit, or which word begins there. Each cell's feature is trained to be the embedding of that
token (`sight.py`). Then the tower stays as it is, and the decoder is trained as nano was, starting from nano: one batch
in five is nano's text.

![Loss over the steps](loss.png)

## What it measures

<!-- figures: vllm-nld nano-vlm eval --card -->
not measured yet
<!-- end of figures -->

"ar without the picture" is AR decoding with a white picture of the same size: what can be guessed.
"""
