"""The draft passes of an engine that serves nano: what they compute, accept, replay, and whether they wait."""

import contextlib
import dataclasses
import functools
from typing import Any

from bench.gpu_check.record import DIFF, FAIL, OK, Finding
from bench.gpu_check.served import AR, LOSSLESS, MODES, Served
from bench.gpu_check.waits import is_ours, waits

B = 32
ACCEPTED = 64  # tokens of answers whose acceptance is compared
STEPS = 6  # decode steps in which nothing may wait
SHARE = 0.1  # by which the acceptance length may differ from the reference's in bf16
LOGITS = {"float32": 1e-4, "bfloat16": 0.1}  # error of draft logits, relative to their norm
CHANGE = {"float32": 1e-2, "bfloat16": 0.3}  # and of what the adapter changes about them


@functools.cache
def reference(adapter: bool = True) -> Any:
    """The plain PyTorch model in fp32, on the CPU."""
    from vllm_nld.nano import checkpoint_path
    from vllm_nld.reference import ReferenceModel

    return ReferenceModel.from_pretrained(checkpoint_path(), adapter=adapter)


def accepted(served: Served) -> Finding:
    """As many drafts are accepted as the reference's with its adapter, at each position; without, it is others."""
    from tests.spec_worker.acceptance import Acceptance, exact_steps

    before = Acceptance.of_metrics(served.llm.get_metrics())
    how = {"max_tokens": ACCEPTED, "stop_token_ids": [], "ignore_eos": True}
    served.ask(served.prompts, [MODES["linear"]] * len(served.prompts), **how)
    found = Acceptance.of_metrics(served.llm.get_metrics()) - before
    exact = {
        lora: Acceptance.of_steps(
            [steps for prompt in served.prompts for steps in exact_steps(reference(), prompt, ACCEPTED, B, lora=lora)],
            B,
        )
        for lora in (True, False)
    }
    text = (
        f"acceptance length {found.length:.2f} in {found.drafts} rounds; reference {exact[True].length:.2f} in "
        f"{exact[True].drafts}, without the adapter {exact[False].length:.2f} in {exact[False].drafts}"
    )
    data = {"length": found.length, "rounds": found.drafts}
    if exact[True] == exact[False]:
        return Finding(DIFF, f"{text}: these prompts don't tell whether the adapter is on", data)
    if served.dtype == "float32":
        return Finding(OK if found == exact[True] else FAIL, text, data)
    return Finding(OK if abs(found.length / exact[True].length - 1) <= SHARE else DIFF, text, data)


def draft_logits(served: Served) -> Finding:
    """A pass over a block gives the reference's logits, with the adapter on and off.

    Its tokens differ: where all are masks, attention gives the same whichever of them it sees.
    """
    import torch

    from vllm_nld.reference.model import KVCache

    model, speculator, found, exact_logits = served.runner.model, served.speculator, {}, {}
    block = torch.arange(200, 200 + B)[None]
    block[0, B // 2 :] = model.config.mask_token_id
    given = dataclasses.replace(speculator._lone_block(), ids=block.to(served.setting.device))
    before = served.replays.total()
    with torch.inference_mode():
        for adapter in (True, False):
            with model.drafting() if adapter else contextlib.nullcontext():
                hidden = speculator._run(given)
            found[adapter] = model.compute_logits(hidden).float().cpu().clone()
            cache = KVCache(model.config.num_hidden_layers)
            hidden = reference()(block, cache, causal=False, lora=adapter)[0]
            exact_logits[adapter] = reference().logits(hidden)
    served.llm.reset_prefix_cache()  # the pass has written to KV blocks that it does not own
    replayed = served.replays.total() - before
    errors = [relative(found[adapter], exact_logits[adapter]) for adapter in (True, False)]
    change = relative(found[True] - found[False], exact_logits[True] - exact_logits[False])
    text = f"relative error on {errors[0]:.1e}, off {errors[1]:.1e}, of the adapter's effect {change:.1e}"
    text += f", {replayed} of 2 passes by a graph"
    data = {"errors": errors, "change": change, "replayed": replayed}
    if max(errors) > LOGITS[served.dtype] or change > CHANGE[served.dtype]:
        close = served.dtype == "float32" and max(errors) < 1e-2
        return Finding(DIFF if close else FAIL, f"{text}{': as with TF32' if close else ''}", data)
    return Finding(OK, text, data)


def relative(found: Any, expected: Any) -> float:
    return float((found - expected).norm() / expected.norm())


def replayed(served: Served, block: int = B) -> Finding:
    """Draft passes of whole blocks run in graphs of their own, in a compiled model of their own."""
    graphs = served.speculator.graphs.graphs
    lengths = sorted({desc.uniform_token_count for desc in graphs})
    total = served.replays.total()
    text = f"{len(graphs)} graphs, for blocks of {lengths}; {total} passes replayed one, {served.eager} ran without"
    data = {"graphs": len(graphs), "lengths": lengths, "replays": total, "eager": served.eager}
    if not served.graphs:
        return Finding(OK if not graphs and not total and served.eager else FAIL, text, data)
    if not graphs or block not in lengths or not total:
        return Finding(FAIL, text, data)
    return Finding(OK if total > served.eager else DIFF, text, data)


def never_waits(served: Served) -> Finding:
    """No host-device wait in decode steps of modes that look at no result before they go on."""
    return waiting(served, {mode: MODES[mode] for mode in (AR, *LOSSLESS)})


def waiting(served: Served, modes: dict[str, dict[str, Any]]) -> Finding:
    """Waits in decode steps, of a few requests of each mode by itself."""
    from vllm import SamplingParams

    front, found = served.llm.llm_engine, {}
    for mode, extra in modes.items():
        names = [f"waits-{mode}-{index}" for index in range(3)]
        for name, prompt in zip(names, served.prompts, strict=False):
            params = SamplingParams(temperature=0, max_tokens=600, ignore_eos=True, detokenize=False, extra_args=extra)
            front.add_request(name, {"prompt_token_ids": prompt}, params)
        for _ in range(4):  # prompts, and the first blocks
            front.step()
        with waits(served.setting.device) as places:
            for _ in range(STEPS):
                front.step()
        front.abort_request(names)
        while front.has_unfinished_requests():
            front.step()
        found[mode] = dict(places)
    text = "; ".join(
        f"{mode}: {', '.join(f'{place} ({count})' for place, count in places.items()) or 'none'}"
        for mode, places in found.items()
    )
    everywhere = [place for places in found.values() for place in places]
    verdict = FAIL if any(map(is_ours, everywhere)) else DIFF if everywhere else OK
    return Finding(verdict, f"waits in {STEPS} steps: {text}", found)
