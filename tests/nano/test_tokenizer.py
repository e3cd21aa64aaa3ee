"""The shipped tokenizer and chat template."""

import itertools

import pytest
from transformers import AutoTokenizer

from vllm_nld.model.configs import register_configs
from vllm_nld.nano import checkpoint_path, words
from vllm_nld.nano.batches import encode
from vllm_nld.nano.export import load_or_build_tokenizer
from vllm_nld.nano.prompts import Prompt, stream
from vllm_nld.nano.tool_task import tool


@pytest.fixture(scope="module")
def tokenizer():
    register_configs()
    return AutoTokenizer.from_pretrained(checkpoint_path())


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """What the recipe builds and saves."""
    folder = tmp_path_factory.mktemp("tokenizer")
    load_or_build_tokenizer(folder, write=True)
    return AutoTokenizer.from_pretrained(folder)


def test_special_ids_are_the_released_ones(tokenizer):
    names = {"<s>": 1, "<|im_start|>": 10, "<|im_end|>": 11, "<think>": 12, "</think>": 13, "<|mask|>": 100}
    assert {name: tokenizer.convert_tokens_to_ids(name) for name in names} == names
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id) == (1, 11, 100)
    assert tokenizer.pad_token_id == 0
    assert len(tokenizer) == 1024


@pytest.mark.parametrize("source", ["tokenizer", "rebuilt"], ids=["shipped", "rebuilt"])
def test_decoded_text_keeps_the_thinking_tags_and_no_other_special_token(source, request):
    tokenizer = request.getfixturevalue(source)
    ids = tokenizer.encode("<|im_start|><think>\nA plan.\n</think>\n1, 2<|im_end|><|mask|>", add_special_tokens=False)
    assert {10, 11, 12, 13, 100} < set(ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>\nA plan.\n</think>\n1, 2"


def test_the_recipe_builds_the_shipped_tokenizer(tokenizer, rebuilt):
    assert rebuilt.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello,  world!\n\n\tgrüße 漢字 🙂",
        '{"a": [1, 23.5, null]}',
        "def f(x):\n    return x\r\n",
        "".join(map(chr, range(1, 256))),
    ],
    ids=["empty", "unicode", "json", "code", "latin1"],
)
def test_any_text_survives_a_round_trip(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


def test_training_text_survives_a_round_trip(tokenizer):
    for prompt in itertools.islice(stream(9), 200):
        ids = tokenizer.encode(prompt.completion, add_special_tokens=False)
        assert tokenizer.decode(ids) == prompt.completion


def test_every_word_of_the_tasks_is_one_token(tokenizer):
    pools = (pool for name, pool in vars(words).items() if name.isupper() and isinstance(pool, list))
    names = [field.name for field in words.FIELDS]
    assert [word for word in itertools.chain(names, *pools) if len(tokenizer.tokenize(word)) > 1] == []


def test_separators_are_one_token_and_words_look_alike_between_any_two(tokenizer):
    assert tokenizer.tokenize("Rome, Lima") == ["Rome", ",Ġ", "Lima"]
    assert tokenizer.tokenize('"Rome", "Lima"')[1:-1] == ["Rome", '",Ġ"', "Lima"]
    assert tokenizer.tokenize("Rome |\n| Lima") == ["Rome", "Ġ|Ċ|Ġ", "Lima"]


def test_every_byte_is_a_token(tokenizer):
    backend = tokenizer.backend_tokenizer
    singles = [token for token in backend.get_vocab() if len(token) == 1]
    assert len(singles) == 256


def test_digits_stay_single(tokenizer):
    assert len(tokenizer.encode("1234", add_special_tokens=False)) == 4


MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({}, "<think></think>"),
        ({"enable_thinking": False}, "<think></think>"),
        ({"enable_thinking": True}, "<think>\n"),
    ],
    ids=["default", "off", "on"],
)
def test_the_generation_prompt_ends_with_the_thinking_state(tokenizer, options, end):
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False, **options)
    assert text == f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{end}"


def test_every_role_is_rendered(tokenizer):
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
        },
        {"role": "tool", "content": "T"},
        {"role": "assistant", "content": "A"},
    ]
    text = tokenizer.apply_chat_template(messages, tools=[tool("f", "F", {"x": "integer"})], tokenize=False)
    assert text.startswith('<|im_start|>system\nS\n<tools>\n{"name": "f", "description": "F", "parameters": {')
    assert '<think></think><tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>\n' in text
    assert "<tool_response>\nT\n</tool_response><|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n<think></think>A<|im_end|>\n")


def test_training_sees_what_serving_renders(tokenizer):
    prompt = Prompt("list", ({"role": "user", "content": "Hi"},), "1. a", plan="A list.", thinking=True)
    ids, completion = encode(tokenizer, prompt)
    assert tokenizer.decode(ids + completion) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\nA list.\n</think>\n1. a<|im_end|>"
    )
