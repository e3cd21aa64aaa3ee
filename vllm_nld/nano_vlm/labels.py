"""What stands in each cell of a picture, in tokens: what the tower is taught before the decoder looks at anything.

Read in order, the labels are the picture as a text, which a decoder that can copy reads off: a thing is its color and
then its kind in its two upper cells, a digit is itself in its upper cell, and a word is one token where it begins.
Every other cell is a pad.

    cell_labels(tokenizer, rule, scene)            # [rows · columns] token ids
"""

from typing import Any

from vllm_nld.model.images import Images
from vllm_nld.nano_vlm.scenes import PITCH, TEXT, Scene


def cell_labels(tokenizer: Any, rule: Images, scene: Scene) -> list[int]:
    """A token for each cell, in reading order. Raises ValueError if a word isn't one token or two share a cell."""
    columns, rows = rule.cells(*scene.size)
    labels = [rule.pad] * (columns * rows)
    for item in scene.items:
        words = [item.color, item.kind]
        if item.kind == TEXT:
            words = list(item.text) if item.text.isdigit() else [item.text]
        first = item.box[1] // rule.cell * columns + item.box[0] // rule.cell
        for index, word in enumerate(words):
            ids = tokenizer.encode(word, add_special_tokens=False)
            place = first + index * PITCH // rule.cell
            if len(ids) != 1 or labels[place] != rule.pad:
                raise ValueError(
                    f"{word!r} can't be the label of cell {place}: it's {len(ids)} tokens, or one is there"
                )
            labels[place] = ids[0]
    return labels
