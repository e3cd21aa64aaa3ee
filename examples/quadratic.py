"""Quadratic self-speculation: the same tokens as AR; the forwards that verify a block also draft the next one.

python examples/quadratic.py [MODEL]                # default: this repository's small checkpoint
"""

import sys

from transformers import AutoTokenizer

from vllm_nld import Generator
from vllm_nld.nano import checkpoint_path

QUESTION = "Make a numbered list of Athens, Oslo, Lima, Quito, Kyoto, Rome."


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else str(checkpoint_path())
    with Generator(model, additional_config={"nld": {"groups": 4}}) as generator:
        tokenizer = AutoTokenizer.from_pretrained(model)
        messages = [{"role": "user", "content": QUESTION}]
        prompt_ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        token_ids, nfe = generator.quadratic_spec_generate(prompt_ids, max_new_tokens=128)
    print(tokenizer.decode(token_ids, skip_special_tokens=True))
    print(f"{len(token_ids)} tokens in {nfe} forwards: {len(token_ids) / nfe:.2f} tokens per forward")


if __name__ == "__main__":
    main()
