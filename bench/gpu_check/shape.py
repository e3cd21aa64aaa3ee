"""A released shape with two layers of random weights: the sizes that users run, with answers that mean something."""

import contextlib
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.gpu_check.nano import set_up, speculating
from bench.gpu_check.record import FAIL, OK, Check, Finding, Setting, Subject
from bench.gpu_check.served import AR, Served, serving, token_ids
from bench.shapes import write
from vllm_nld.roofline.shapes import SHAPES

LAYERS = 2
REQUESTS = 64  # of the full batch; on a CPU fewer
MARGIN = 1.05  # by which a step may exceed the memory profile


@contextlib.contextmanager
def open_shape(setting: Setting) -> Iterator[Served]:
    """On a CPU a tiny model, with as many heads per key head."""
    import torch

    from tests.engines import random_prompts
    from tests.tiny import write_tiny_checkpoint

    torch.manual_seed(0)
    requests = REQUESTS if setting.gpu else 8
    options: dict[str, Any] = {"max_num_seqs": requests, "max_num_batched_tokens": requests * 32}
    with tempfile.TemporaryDirectory() as folder:
        if setting.gpu:
            model = write(Path(folder), SHAPES["8b"], LAYERS)
            options |= {"load_format": "dummy", "max_model_len": 4096, "kv_cache_memory_bytes": 2**31}
            options |= {"gpu_memory_utilization": 0.2}
        else:
            model = write_tiny_checkpoint(Path(folder), vocab_size=2048, max_position_embeddings=512)
        vocabulary = SHAPES["8b"].vocabulary if setting.gpu else 2048
        prompts = random_prompts(requests, vocabulary, longest=200 if setting.gpu else 60)
        options["additional_config"] = {"nld": {"mode": "linear"}}
        with serving(model, setting, "bfloat16", True, prompts, 16 if setting.quick else 32, **options) as served:
            if setting.gpu:
                randomize(served.runner.model)
                served.llm.reset_prefix_cache()
            yield served


def randomize(model: Any) -> None:
    """Replace vLLM's dummy weights, with which all logits nearly tie: matrices of unit gain, norms around one."""
    import torch

    with torch.inference_mode():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                weight.normal_(1.0, 0.1)
            else:
                weight.normal_(0.0, 1.0 if "embed_tokens" in name else 1.5 * weight.shape[1] ** -0.5)


def own(served: Served) -> Finding:
    """AR's answers are told apart by the prompts: else the next lines prove nothing."""
    from tests.spec_worker.near_ties import likeliest

    answers = served.answers(AR)
    different = len({tuple(tokens) for tokens in token_ids(answers)})
    data = {"tokens": token_ids(answers), "known": [likeliest(answer) for answer in answers]}
    return Finding(OK if 2 * different > len(answers) else FAIL, f"{different} of {len(answers)} answers differ", data)


def memory(served: Served) -> Finding:
    """vLLM's memory profile sees at least what a full batch takes for its drafts' candidates."""
    import torch

    from tests.spec_worker.memory import drafting, profiled

    modes: dict[str, dict[str, Any]] = {
        "linear": {"nld_mode": "linear"},
        "diffusion": {"nld_mode": "diffusion", "nld_threshold": 0.9},
        "sampled": {"nld_mode": "diffusion", "nld_threshold": 0.9},
    }
    most, peaks, device = profiled(served.runner), {}, ""
    if served.setting.gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    for mode, extra in modes.items():
        sampling = {"temperature": 1.0, "top_k": 50, "top_p": 0.9} if mode == "sampled" else {}
        with drafting(served.runner) as found:
            served.ask(served.prompts, [extra] * len(served.prompts), ignore_eos=True, **sampling)
        peaks[mode] = max(found)
    if served.setting.gpu:
        device = f"; steps took up to {(torch.cuda.max_memory_allocated() - before) / 2**20:.0f} MiB of the device"
    text = ", ".join(f"{mode} {peak / 2**20:.1f}" for mode, peak in peaks.items())
    verdict = OK if max(peaks.values()) <= MARGIN * most else FAIL
    data = {"profiled": most, "peaks": peaks}
    return Finding(verdict, f"MiB of drafting: profiled {most / 2**20:.1f}, {text}{device}", data)


CHECKS = (
    Check("set-up", "nothing that was asked for is silently off", set_up),
    Check("answers", "random weights must not loop", own),
    Check("linear = ar", "speculation is lossless at released sizes", partial(speculating, "linear"), 180),
    Check("candidates' memory", "a full batch must not run out of memory", memory, 180),
)


def subject() -> Subject:
    return Subject("shape", "shape", open_shape, CHECKS)
