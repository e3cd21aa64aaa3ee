"""Diffusion with an image: the model answers a question about a picture.

python examples/images.py MODEL [IMAGE] [QUESTION]
"""

import sys

from PIL import Image
from transformers import AutoTokenizer

from vllm_nld import Generator


def main() -> None:
    model = sys.argv[1]
    image = Image.open(sys.argv[2]) if len(sys.argv) > 2 else Image.new("RGB", (224, 224), "red")
    question = sys.argv[3] if len(sys.argv) > 3 else "What is in the picture?"
    with Generator(model) as generator:
        tokenizer = AutoTokenizer.from_pretrained(model)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        prompt_ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        token_ids, nfe = generator.generate(prompt_ids, max_new_tokens=128, images=[image])
    print(tokenizer.decode(token_ids, skip_special_tokens=True))
    print(f"{len(token_ids)} tokens in {nfe} forwards: {len(token_ids) / nfe:.2f} tokens per forward")


if __name__ == "__main__":
    main()
