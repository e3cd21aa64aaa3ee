"""Counters in special cases: AR only, too few KV blocks, stop strings, several choices."""

from pathlib import Path
from typing import Any

from tests.engines import greedy, random_prompts
from tests.metrics.conftest import counting
from tests.metrics.test_counts import BLOCK, TOKENS
from tests.spec_worker.conftest import VOCAB
from tests.tiny import write_tiny_checkpoint


def test_ar_counts_one_forward_per_token(agreeable_checkpoint: Path) -> None:
    prompts = random_prompts(12, VOCAB, longest=120)
    with counting(agreeable_checkpoint, additional_config={"nld": {"mode": "ar"}}) as counted:
        greedy(counted.llm, prompts, TOKENS)
        assert counted("nld:output_tokens_total", mode="ar") == len(prompts) * TOKENS
        assert counted("nld:forwards_total", mode="ar", kind="target") == len(prompts) * TOKENS
        assert counted("nld:forwards_total", kind="draft") == 0
        assert counted("nld:draft_tokens_total", mode="ar") == 0


def test_preempted_requests_count_once(agreeable_checkpoint: Path) -> None:
    """Eleven KV blocks for eight requests that need three each."""
    prompts = random_prompts(8, VOCAB, longest=40)
    options: dict[str, Any] = {"block_size": 32, "num_gpu_blocks_override": 11, "enable_prefix_caching": False}
    with counting(
        agreeable_checkpoint, additional_config={"nld": {"mode": "linear", "block_length": BLOCK}}, **options
    ) as counted:
        greedy(counted.llm, prompts, 60)
        assert counted("vllm:num_preemptions_total") > 0
        assert counted("nld:requests_total", reason="length") == len(prompts)
        assert counted("nld:output_tokens_total") == len(prompts) * 60
        assert counted("nld:acceptance_length_count") == counted("vllm:spec_decode_num_drafts_total")
        assert counted("nld:accepted_draft_tokens_total") == counted("vllm:spec_decode_num_accepted_tokens_total")


def test_tokens_after_a_stop_string_are_not_counted(tmp_path: Path) -> None:
    """A block may run past a stop string, but the client gets none of that. Each choice counts as a request."""
    from vllm import SamplingParams

    model = write_tiny_checkpoint(tmp_path / "model", tokenizer=True)
    with counting(
        model, skip_tokenizer_init=False, additional_config={"nld": {"mode": "linear", "block_length": BLOCK}}
    ) as counted:
        prompt = {"prompt_token_ids": [5, 20, 40]}
        free = counted.llm.generate([prompt], SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
        words = free[0].outputs[0].text.split()
        before = counted("nld:output_tokens_total")
        params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, stop=[words[12]], n=1)
        cut = counted.llm.generate([prompt], params)[0].outputs[0]
        assert cut.finish_reason == "stop"
        assert counted("nld:output_tokens_total") - before == len(cut.token_ids)
        assert counted("nld:requests_total", reason="stop") == 1
        several = SamplingParams(temperature=1.0, seed=3, max_tokens=7, ignore_eos=True, n=3)
        counted.llm.generate([prompt], several)
        assert counted("nld:requests_total", reason="length") == 1 + 3
