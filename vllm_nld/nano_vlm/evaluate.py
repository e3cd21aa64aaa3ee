"""`vllm-nld nano-vlm eval`: exact match, acceptance length and TPF on held-out pictures, by the reference in fp32."""

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_nld.nano_vlm import Question, checkpoint_path, heldout

if TYPE_CHECKING:
    from vllm_nld.nano.measure import Figures
    from vllm_nld.reference.vlm import ReferenceVLM

BLIND = "ar without the picture"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld nano-vlm eval`."""
    parser.add_argument("--checkpoint", type=Path, default=checkpoint_path(), help="another folder in the same layout")
    parser.add_argument("--limit", type=int, help="this many questions only, drawn over the categories")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--card", action="store_true", help="write the table into the checkpoint's README.md")
    parser.add_argument("--check", action="store_true", help="exit 1 if README.md states another table")


def measure(model: "ReferenceVLM", tokenizer: Any, questions: Iterable[Question]) -> dict[str, "Figures"]:
    """Greedy answers to every question in every mode, and to a white picture."""
    from PIL import Image

    from vllm_nld.nano.measure import MAX_NEW_TOKENS, RUNS, Figures, answer
    from vllm_nld.nano_vlm.scenes import BACKGROUND, draw
    from vllm_nld.reference import generate

    figures = {name: Figures() for name in (*(run[0] for run in RUNS), BLIND)}
    for asked in questions:
        content = [{"type": "image"}, {"type": "text", "text": asked.request}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer.encode(text, add_special_tokens=False)
        white = Image.new("RGB", asked.scene.size, BACKGROUND)
        for name, mode, lora in (*RUNS, (BLIND, "ar", False)):
            with model.shown(ids, [white if name == BLIND else draw(asked.scene)]) as prompt:
                result = generate(model, prompt, mode=mode, max_new_tokens=MAX_NEW_TOKENS, lora=lora)  # type: ignore[arg-type]  # a str
            figures[name].right[asked.category].append(answer(tokenizer, result.tokens) == asked.answer)
            figures[name].tokens += len(result.tokens)
            figures[name].nfe += result.nfe
            figures[name].emitted += sum(result.rounds)
            figures[name].steps += len(result.rounds)
    return figures


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write or compare what was asked for. Returns the exit status."""
    import torch
    from transformers import AutoTokenizer

    from vllm_nld.model.configs import register_configs
    from vllm_nld.nano.evaluate import table
    from vllm_nld.nano_vlm.card import figures_of, fill_card
    from vllm_nld.reference.vlm import ReferenceVLM

    questions = heldout()
    if args.limit is not None:
        if args.card or args.check:
            print("--card and --check need all held-out questions: leave out --limit")
            return 2
        questions = random.Random(0).sample(questions, min(args.limit, len(questions)))
    if not (args.checkpoint / "config.json").exists():
        print(f"{args.checkpoint} holds no checkpoint: run `vllm-nld nano-vlm train`, or name one by --checkpoint")
        return 1
    register_configs()  # AutoTokenizer reads config.json too
    torch.set_num_threads(1)  # a model this small is slower on several
    model = ReferenceVLM.from_pretrained(args.checkpoint)
    figures = measure(model, AutoTokenizer.from_pretrained(args.checkpoint), questions)
    text = table(figures, len(questions))
    print(text, end="")
    if args.json:
        content = {"questions": len(questions), "modes": {name: run.as_dict() for name, run in figures.items()}}
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if args.card:
        fill_card(args.checkpoint, text)
    if args.check and figures_of(args.checkpoint) != text:
        print(f"{args.checkpoint / 'README.md'} states other figures: run `vllm-nld nano-vlm eval --card`")
        return 1
    return 0
