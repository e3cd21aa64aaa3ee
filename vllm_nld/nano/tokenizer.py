"""Builds nano's tokenizer: one token for each word and each separator of the tasks, and bytes for everything else.

Text is cut into words, digits and what stands between them (`": "`, ` | `, a line break with its indentation). Each
such piece of the training text is one token wherever it stands, so that copying a word is one step and lists with
different separators look alike, which is what a small model needs. Pieces that are not in the vocabulary are written
by byte-level BPE: all 256 bytes are there, so any text and any grammar-constrained output can be written. The special
ids are the released ones.

    tokenizer = build_tokenizer(texts, vocab_size=1024)
    tokenizer.save_pretrained(folder)              # AutoTokenizer loads it, no remote code
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
SPLIT = r"[A-Za-z]+|[0-9]|[^A-Za-z0-9]+"
VISIBLE = ("<think>", "</think>")  # kept in decoded text, where reasoning parsers look for them
TEMPLATE = Path(__file__).parent / "checkpoint" / "chat_template.jinja"


def special_tokens() -> list[AddedToken]:
    """Ids 0 to 100 in order."""
    names = [NAMED.get(index, f"<SPECIAL_{index}>") for index in range(MASK + 1)]
    return [AddedToken(name, normalized=False) for name in names]


def choose_vocabulary(trained: dict[str, Any], pieces: Counter[str], size: int) -> dict[str, Any]:
    """The BPE model's saved form with the most frequent pieces as whole tokens, and as many merges as still fit."""
    vocab = {token: index for token, index in trained["vocab"].items() if index <= MASK or len(token) == 1}
    words = [piece for piece, _ in pieces.most_common() if piece not in vocab]
    vocab |= {word: len(vocab) + index for index, word in enumerate(words[: size - len(vocab)])}
    merges = []
    for left, right in trained["merges"]:
        if left + right not in vocab:
            if len(vocab) == size:
                break
            vocab[left + right] = len(vocab)
        merges.append((left, right))
    return trained | {"vocab": vocab, "merges": merges}


def build_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Take the vocabulary from `texts`; the chat template comes with it."""
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    texts = list(texts)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    pieces = Counter(piece for text in texts for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    saved = json.loads(backend.to_str())
    saved["model"] = choose_vocabulary(saved["model"], pieces, vocab_size)
    for token in saved["added_tokens"]:  # the trainer marks all as special, whatever is asked
        token["special"] = token["content"] not in VISIBLE
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(saved)),
        bos_token=NAMED[BOS],
        eos_token=NAMED[EOS],
        pad_token=NAMED[0],
        mask_token=NAMED[MASK],
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    return tokenizer
