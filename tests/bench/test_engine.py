"""What benchmarks do with an engine in their own process: traffic with bad drafts, and the parts of a first token."""

from collections.abc import Iterator
from typing import Any

import pytest

from bench import first_token
from bench.parts import DRAFT, DRAFT_LOGITS, HOST, PARTS, SAMPLING, VERIFY
from bench.traffic import GOOD, TROUBLES, Driver
from tests.engines import engine, random_prompts
from vllm_nld.nano import checkpoint_path

REQUESTS = 3


@pytest.fixture(scope="module")
def llm() -> Iterator[Any]:
    with engine(checkpoint_path(), max_num_seqs=REQUESTS, skip_tokenizer_init=False, max_model_len=1024) as nano:
        yield nano


def tokens_per_step(driver: Driver, traffic: str, steps: int = 40) -> float:
    driver.turn_to(traffic)
    tokens, seconds = driver.steps(steps)
    assert seconds > 0
    return tokens / steps / REQUESTS


def test_troubles_make_drafts_bad_and_do_not_last(llm: Any) -> None:
    driver = Driver(llm, "linear", REQUESTS)
    good = tokens_per_step(driver, GOOD)
    assert good > 3, "nano's drafts are accepted"
    for trouble in TROUBLES:
        assert tokens_per_step(driver, trouble) < good / 2
        assert tokens_per_step(driver, GOOD) > 3
        assert llm.llm_engine.get_num_unfinished_requests() == REQUESTS, "those of before are dropped"
    driver.stop()


def test_ar_decodes_one_token_per_request_and_step(llm: Any) -> None:
    driver = Driver(llm, "ar", REQUESTS, random_prompts(5, 320, 20))
    driver.turn_to("random words")
    driver.steps(2)  # prompts
    assert driver.steps(20)[0] == 20 * REQUESTS
    driver.turn_to(GOOD)
    assert llm.llm_engine.get_num_unfinished_requests() == REQUESTS, "those of before are dropped"
    driver.stop()


def test_parts_of_the_first_token(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = first_token.watch_requests(llm, monkeypatch.setattr)
    prompts = ["Count from 1 to 9.", "hello"]
    plain, linear = (first_token.seen_from_inside(llm, spans, prompts, mode) for mode in ("ar", "linear"))
    assert plain.keys() == linear.keys() == {first_token.TOKENISE, *PARTS, first_token.DETOKENISE}
    assert {name for name, spent in plain.items() if spent == 0} >= {DRAFT, DRAFT_LOGITS}
    for found in (plain, linear):
        assert all(found[name] > 0 for name in (first_token.TOKENISE, VERIFY, SAMPLING, HOST, first_token.DETOKENISE))
    assert llm.llm_engine.get_num_unfinished_requests() == 0
