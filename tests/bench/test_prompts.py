"""Prompt sets: every format gives the same questions, rendered once for all clients."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from bench.prompts import Question, read, write
from vllm_nld.model.configs import register_configs
from vllm_nld.nano import checkpoint_path, heldout
from vllm_nld.nano.batches import encode

LAYOUTS = {
    "Spec-Bench": {"question_id": 81, "category": "writing", "turns": ["Say hello.", "Again."]},
    "SPEED-Bench": {"category": "writing", "messages": [{"role": "user", "content": "Say hello."}]},
    "vLLM's custom": {"category": "writing", "prompt": "Say hello."},
}


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    register_configs()
    return AutoTokenizer.from_pretrained(checkpoint_path())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_first_turn_is_read_from_every_layout(tokenizer, layout: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "question.jsonl"
    file.write_text(json.dumps(LAYOUTS[layout]) + "\n")
    (question,) = read(tokenizer, file)
    assert question.category == "writing" and question.expected is None
    assert "Say hello." in question.prompt and "Again." not in question.prompt
    assert question.prompt.endswith("<think></think>") or "assistant" in question.prompt


def test_rows_keep_their_system_message_answer_and_length(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say hello."},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "Again."},
    ]
    file = tmp_path / "question.jsonl"
    file.write_text(json.dumps({"messages": messages, "expected": "hello", "max_tokens": 7}) + "\n")
    (question,) = read(tokenizer, file)
    assert question.prompt.index("Be brief.") < question.prompt.index("Say hello.") and "Again." not in question.prompt
    assert (question.expected, question.max_tokens) == ("hello", 7)


def test_messages_without_a_question_are_rejected(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "system", "content": "Be brief."}]}) + "\n")
    with pytest.raises(ValueError, match="nothing to answer"):
        read(tokenizer, file)


def test_speed_bench_folder(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "qualitative.jsonl").write_text(json.dumps(LAYOUTS["SPEED-Bench"]) + "\n")
    assert len(read(tokenizer, tmp_path)) == 1


def test_unknown_layout_is_rejected(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "hello"}\n')
    with pytest.raises(ValueError, match="'messages', 'prompt', 'turns' .Spec-Bench."):
        read(tokenizer, file)


def test_nano_questions_match_its_training_format(tokenizer) -> None:  # type: ignore[no-untyped-def]
    plain = [prompt for prompt in heldout() if not prompt.thinking]
    ids = {tuple(encode(tokenizer, prompt)[0]) for prompt in plain}
    questions = read(tokenizer, None)
    assert {tuple(tokenizer.encode(q.prompt, add_special_tokens=False)) for q in questions} == ids
    assert len({q.category for q in questions[:11]}) == 11, "any prefix is a mixture"


def test_written_dataset_has_vllms_custom_format(tmp_path: Path) -> None:
    file = write([Question("a", "<s>hi", 5), Question("b", "there", 7)], tmp_path / "prompts.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows == [{"prompt": "<s>hi", "output_tokens": 5}, {"prompt": "there", "output_tokens": 7}]
