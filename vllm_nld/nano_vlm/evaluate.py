"""`vllm-nld nano-vlm eval`: exact match, acceptance length and TPF on held-out pictures, by the reference in fp32."""

import argparse
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from vllm_nld.nano import evaluate
from vllm_nld.nano_vlm import Question, checkpoint_path, heldout

if TYPE_CHECKING:
    from vllm_nld.reference.vlm import ReferenceVLM

BLIND = "ar without the picture"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld nano-vlm eval`."""
    evaluate.add_arguments(parser, checkpoint_path())


def show(model: "ReferenceVLM", tokenizer: Any, asked: Question, run: str) -> AbstractContextManager[list[int]]:
    """The question's prompt with its picture, or with a white one."""
    from PIL import Image

    from vllm_nld.nano_vlm.scenes import BACKGROUND, draw

    content = [{"type": "image"}, {"type": "text", "text": asked.request}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    white = Image.new("RGB", asked.scene.size, BACKGROUND)
    return model.shown(tokenizer.encode(text, add_special_tokens=False), [white if run == BLIND else draw(asked.scene)])


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write or compare what was asked for. Returns the exit status."""
    from vllm_nld.nano.measure import RUNS
    from vllm_nld.reference.vlm import ReferenceVLM

    subject = evaluate.Subject("nano-vlm", heldout(), ReferenceVLM, (*RUNS, (BLIND, "ar", False)), show)
    return evaluate.run(args, subject)
