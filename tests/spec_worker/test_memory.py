"""What vLLM's memory profile sees of drafting is the most that drafting ever takes."""

from collections.abc import Iterator
from typing import Any

import pytest

from spec_worker import candidates
from tests.engines import engine, random_prompts
from tests.spec_worker.batches import BLOCK, Ask, together, tokens
from tests.spec_worker.conftest import linear
from tests.spec_worker.leaks import parts
from tests.spec_worker.memory import drafting, profiled
from tests.tiny import write_tiny_checkpoint

VOCAB, REQUESTS = 8192, 16  # so many tokens that logits outweigh all else
PROMPTS = random_prompts(REQUESTS, VOCAB, longest=20, seed=17)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    checkpoint = write_tiny_checkpoint(tmp_path_factory.mktemp("wide"), vocab_size=VOCAB)
    with engine(checkpoint, **linear(BLOCK), max_num_batched_tokens=REQUESTS * BLOCK, max_num_seqs=REQUESTS) as llm:
        yield llm


SAMPLED = {"temperature": 1.0, "top_k": 50, "top_p": 0.9}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"nld_mode": "linear"}, {}),
    "linear, sampled": ({"nld_mode": "linear"}, SAMPLED),
    "linear, sure drafts": ({"nld_mode": "linear", "nld_draft_threshold": 0.9}, {}),
    "diffusion": ({"nld_mode": "diffusion", "nld_threshold": 0.9}, {}),
    "diffusion in one pass": ({"nld_mode": "diffusion", "nld_threshold": 0.0}, {}),
    "diffusion, sampled": ({"nld_mode": "diffusion", "nld_threshold": 0.9}, SAMPLED),
}


@pytest.mark.parametrize(("extra", "sampling"), CASES.values(), ids=CASES)
def test_the_profile_takes_as_much_as_any_step(extra: dict[str, Any], sampling: dict[str, Any], llm: Any) -> None:
    """Else a full batch runs out of memory on a GPU, whose free memory the KV cache has taken."""
    runner = parts(llm)[2]
    most = profiled(runner)
    with drafting(runner) as peaks:
        together(llm, [Ask(prompt, extra, sampling=sampling) for prompt in PROMPTS])
    logits = REQUESTS * (BLOCK - 1) * VOCAB * 4
    assert max(peaks) >= 0.8 * logits, "some step drafted for most requests at once"
    assert max(peaks) <= 1.05 * most, f"{max(peaks) / logits:.2f} times the logits, profiled {most / logits:.2f}"


@pytest.mark.parametrize(("extra", "sampling"), CASES.values(), ids=CASES)
def test_rows_are_decided_in_chunks(
    extra: dict[str, Any], sampling: dict[str, Any], llm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk of a few rows bounds what a pass takes, and changes no answer."""
    asks = [Ask(prompt, extra, sampling=sampling | {"seed": 3}) for prompt in PROMPTS]
    with drafting(parts(llm)[2]) as peaks:
        whole, most = tokens(together(llm, asks)), max(peaks)
        peaks.clear()
        row = VOCAB * 4
        monkeypatch.setattr(candidates, "CHUNK_BYTES", 5 * row)
        assert tokens(together(llm, asks)) == whole
    assert max(peaks) < 30 * row < most / 3, f"{max(peaks) / row:.0f} rows' logits at once, unchunked {most / row:.0f}"
