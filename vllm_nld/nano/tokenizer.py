"""Builds nano's tokenizer: byte-level BPE with the released special ids, single digits, words apart from their
spaces.

All 256 bytes are in the vocabulary, so any text and any grammar-constrained output can be written. A word is the same
token wherever it stands (after a space, a quote, a bar), which is what makes copying easy for a small model.

    tokenizer = build_tokenizer(texts, vocab_size=1024)
    tokenizer.save_pretrained(folder)              # AutoTokenizer loads it, no remote code
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, MASK = 1, 11, 100
NAMED = {
    0: "<pad>",
    BOS: "<s>",
    2: "</s>",
    10: "<|im_start|>",
    EOS: "<|im_end|>",
    12: "<think>",
    13: "</think>",
    MASK: "<|mask|>",
}
SPLIT = r"[A-Za-z]+|[0-9]|\n+ *| +|[^\sA-Za-z0-9]+|\s"
VISIBLE = ("<think>", "</think>")  # kept in decoded text, where reasoning parsers look for them
TEMPLATE = Path(__file__).parent / "checkpoint" / "chat_template.jinja"


def special_tokens() -> list[AddedToken]:
    """Ids 0 to 100 in order."""
    names = [NAMED.get(index, f"<SPECIAL_{index}>") for index in range(MASK + 1)]
    return [AddedToken(name, normalized=False) for name in names]


def show_thinking(backend: Tokenizer) -> Tokenizer:
    """A copy whose decode keeps the thinking tags when it drops special tokens.

    The trainer marks every token it is given as special, and a token cannot be unmarked, so this edits the saved form.
    """
    saved = json.loads(backend.to_str())
    for token in saved["added_tokens"]:
        token["special"] = token["content"] not in VISIBLE
    return Tokenizer.from_str(json.dumps(saved))


def build_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Train the merges on `texts`; the chat template comes with it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special_tokens(),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=show_thinking(backend),
        bos_token=NAMED[BOS],
        eos_token=NAMED[EOS],
        pad_token=NAMED[0],
        mask_token=NAMED[MASK],
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    return tokenizer
