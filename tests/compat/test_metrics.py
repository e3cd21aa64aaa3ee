"""Our counts reach the API server, and each request, token, pass and refusal is counted."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.compat.conftest import without
from tests.engines import greedy, random_prompts
from tests.metrics.conftest import Counted
from tests.spec_worker.conftest import TOKENS, VOCAB
from vllm_nld.compat import metrics

PROMPTS = random_prompts(6, VOCAB, longest=60)


@pytest.fixture(scope="module")
def arrived() -> dict[str, dict[str, Any]]:
    """With and without the fields, the attributes of two records that were sent as to another process."""
    command = [sys.executable, "-m", "tests.compat.sending"]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True).stdout
    without_fields, with_fields = map(json.loads, told.splitlines())
    return without_fields | with_fields


def test_without_add_scheduler_stats_field_nothing_arrives(arrived: dict[str, dict[str, Any]]) -> None:
    """And so for add_forward_count: see tests/compat/sending.py."""
    assert arrived["without"] == {"running": 3, "nld": None, "drafts": 7, "forwards": None}
    assert arrived["with"] == {
        "running": 3,
        "nld": {"rounds": [["linear", 7, 2, 1]], "lora": True},
        "drafts": 7,
        "forwards": 5,
    }


def test_a_grown_dataclass_is_still_vllms() -> None:
    from vllm.v1.metrics.stats import SchedulerStats

    stats, other = SchedulerStats(), SchedulerStats()
    assert type(stats) is SchedulerStats and stats == other
    assert stats.prefix_cache_stats is not other.prefix_cache_stats, "default factories run"
    other.nld = {}  # type: ignore[attr-defined]
    assert stats != other and "nld={}" in repr(other)
    assert SchedulerStats(nld={"a": 1}).nld == {"a": 1}  # type: ignore[call-arg, attr-defined]


@pytest.mark.parametrize("mode", ["linear", "diffusion"])
def test_without_report_passes_no_draft_forward_is_counted(mode: str, counted: Counted) -> None:
    kind = {"linear": "draft", "diffusion": "denoise"}[mode]
    with without(metrics.report_passes):
        greedy(counted.llm, PROMPTS, TOKENS, extra_args={"nld_mode": mode})
        assert counted("nld:forwards_total", mode=mode, kind="target") > 0
        assert counted("nld:forwards_total", mode=mode, kind=kind) == 0
    counted = Counted(counted.llm)
    greedy(counted.llm, PROMPTS, TOKENS, extra_args={"nld_mode": mode})
    assert counted("nld:forwards_total", mode=mode, kind=kind) >= counted("nld:blocks_committed_total", mode=mode) > 0


def stopped(counted: Counted) -> int:
    """Tokens that the client of a request gets which a stop string cuts in the middle of a block."""
    from vllm import SamplingParams

    prompt = {"prompt_token_ids": PROMPTS[3]}
    common: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "extra_args": {"nld_mode": "diffusion"}}
    (free,) = counted.llm.generate([prompt], SamplingParams(max_tokens=8, **common), use_tqdm=False)
    words = free.outputs[0].text.split()
    counted.before = counted.samples()
    params = SamplingParams(max_tokens=40, stop=[words[2]], **common)
    (cut,) = counted.llm.generate([prompt], params, use_tqdm=False)
    assert cut.outputs[0].finish_reason == "stop"
    return len(cut.outputs[0].token_ids)


def test_without_tally_requests_tokens_after_a_stop_string_count(counted: Counted) -> None:
    """And neither the mode of a request nor one that was aborted is known."""
    with without(metrics.tally_requests):
        tokens = stopped(counted)
        assert counted("vllm:generation_tokens_total") > tokens, "vLLM's own count"
        abort(counted)
        assert counted("nld:output_tokens_total") == 0 == counted("nld:requests_total")
    tokens = stopped(counted)
    assert counted("nld:output_tokens_total", mode="diffusion") == tokens
    abort(counted)
    assert counted("nld:requests_total", reason="abort") == 1
    assert counted("nld:requests_total", reason="stop") == 1


def abort(counted: Counted) -> None:
    from vllm import SamplingParams

    core = counted.llm.llm_engine
    core.add_request("gone", {"prompt_token_ids": PROMPTS[0]}, SamplingParams(max_tokens=60, ignore_eos=True))
    core.step()
    core.abort_request(["gone"])
    while core.has_unfinished_requests():
        core.step()


def test_without_count_refusals_nobody_hears_of_them(counted: Counted) -> None:
    def refuse() -> float:
        with pytest.raises(ValueError, match="nld_mode"):
            greedy(counted.llm, PROMPTS[:1], 4, extra_args={"nld_mode": "fast"})
        return counted("nld:requests_refused_total", reason="parameters")

    with without(metrics.count_refusals):
        assert refuse() == 0
    assert refuse() == 1
