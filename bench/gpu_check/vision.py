"""A vision-language model with random weights: pictures in prompts, in every mode, against the plain PyTorch reference.

The weights say nothing about quality. The tower, the places of its features and the drafts' embeddings can be checked.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.gpu_check.answers import same
from bench.gpu_check.drafting import relative, replayed
from bench.gpu_check.nano import SMALL
from bench.gpu_check.record import DIFF, FAIL, OK, Check, Finding, Setting, Subject
from bench.gpu_check.served import Served, serving, token_ids
from bench.gpu_check.tight import metric

BLOCK, GROUPS, IMAGES = 8, 2, 3
ERRORS = (1e-4, 1e-2)  # of features, relative to their norm: in fp32, and with products rounded to TF32


@contextlib.contextmanager
def open_vision(setting: Setting) -> Iterator[Served]:
    from tests.spec_worker.conftest import linear, write_agreeable_checkpoint
    from tests.tiny import VLM
    from vllm_nld.reference.vlm import ReferenceVLM

    options: dict[str, Any] = {"max_num_seqs": 16, "limit_mm_per_prompt": {"image": IMAGES}}
    options |= linear(BLOCK, groups=GROUPS)
    if setting.gpu:
        options |= {"attention_backend": "TRITON_ATTN"} | SMALL
    else:
        options |= {"num_gpu_blocks_override": 128}  # the emulation of graphs looks at all of them
    with tempfile.TemporaryDirectory() as folder:
        model = write_agreeable_checkpoint(Path(folder), **VLM)
        with serving(model, setting, "float32", True, [], 16 if setting.quick else 20, **options) as served:
            served.reference = ReferenceVLM.from_pretrained(model)
            yield served


def features(served: Served) -> Finding:
    """The tower's features of several pictures in one call."""
    import torch

    from tests.spec_worker.vlm import PICTURES
    from vllm_nld.model.images import Images

    pixels = [torch.from_numpy(Images.of(served.reference.config)(image)[0]) for image in PICTURES]
    with torch.inference_mode():
        found = served.runner.model.embed_multimodal(pixel_values=[one.to(served.setting.device) for one in pixels])
        exact = [served.reference.look(one) for one in pixels]
    worst = max(relative(ours.cpu().float(), one) for ours, one in zip(found, exact, strict=True))
    text = f"relative error of {len(pixels)} pictures' features up to {worst:.1e}, allowed {ERRORS[0]:.0e}"
    if worst <= ERRORS[0]:
        return Finding(OK, text, worst)
    return Finding(DIFF if worst <= ERRORS[1] else FAIL, f"{text}: TF32 is off by up to {ERRORS[1]:.0e}", worst)


def answers(served: Served) -> Finding:
    """Requests with none to three pictures, of all modes, in one batch."""
    from tests.spec_worker.vlm import asks, run

    asked = asks(16 if served.setting.quick else 32)
    found = token_ids(run(served.llm, asked, served.tokens))
    return same(found, [ask.exact(served.reference, BLOCK, served.tokens).tokens for ask in asked], served.dtype)


def cached(served: Served) -> Finding:
    """A prompt's prefix comes from the cache with the same picture only."""
    from tests.spec_worker.vlm import PICTURES, START, WORDS, Ask, run

    served.llm.reset_prefix_cache()
    first = Ask([1, START, *WORDS[:30]], [PICTURES[1]])
    other = Ask(first.prompt, [PICTURES[1].rotate(90)])
    asked, found, hits = [first, first, other], [], []
    for ask in asked:
        before = metric(served, "prefix_cache_hits")
        found += token_ids(run(served.llm, [ask], served.tokens))
        hits.append(metric(served, "prefix_cache_hits") - before)
    equal = same(found, [ask.exact(served.reference, BLOCK, served.tokens).tokens for ask in asked], served.dtype)
    right = hits[0] == hits[2] == 0 < hits[1]
    text = (
        f"{equal.text}; tokens from the cache: {hits[0]}, with the same picture {hits[1]}, with another one {hits[2]}"
    )
    return Finding(equal.verdict if right else FAIL, text, {"hits": hits})


CHECKS = (
    Check("features = reference", "the tower sees what it should", features),
    Check("answers = reference", "pictures are in the right places of every mode's passes", answers, 180),
    Check("prefix cache", "nobody's answer is about another one's picture", cached),
    Check("draft graphs", "passes that take embeddings have graphs too", partial(replayed, block=BLOCK)),
)


def subject() -> Subject:
    return Subject("vision", "nano", open_vision, CHECKS)
