"""Moves the KV of rows of a step, after its forward: the accepted nodes of a draft tree go where a causal sequence has
them.

    move_rows(layers, slot_mappings, source, target)    # row target[i]'s slot gets the KV of row source[i]

Most kernels' caches are tensors of tokens, which are gathered and scattered in place. The CPU's layout depends on the
instruction set, so its layers keep the keys and values of a step that has masks, and write them again. M rows to move,
N KV blocks of P tokens, G key/value heads, D head size.
"""

from collections.abc import Mapping
from typing import Any

import torch


class KeptRows:
    """Mixed into the attention implementation of a kernel whose cache cannot be moved in place."""

    kept: tuple[torch.Tensor, torch.Tensor] | None = None  # keys and values [T, G, D] of the last step with masks

    def keep(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep copies, because the model reuses the memory."""
        self.kept = key.clone(), value.clone()


def move_rows(
    layers: Mapping[str, Any],  # attention layers by name
    slot_mappings: Mapping[str, torch.Tensor],  # [T] int64 by layer: the slot of each row
    source: torch.Tensor,  # [M] int64, rows of the step
    target: torch.Tensor,  # [M] int64; a row that stays may be named any number of times
) -> None:
    """Copy the KV of each source row to its target row's slot. Doesn't wait for the device."""
    known, places = None, [source] * 4
    for name, slots in slot_mappings.items():
        layer = layers[name]
        if isinstance(layer.impl, KeptRows):
            assert layer.impl.kept is not None, "the step had masks"
            keys, values = layer.impl.kept
            layer.impl.kept = None
            layer.impl.do_kv_cache_update(layer, keys[source], values[source], layer.kv_cache, slots[target])  # type: ignore[attr-defined]  # the kernel's
        else:
            cache = layer.kv_cache  # [N, G, P, 2 * D], whatever its strides
            if slots is not known:  # layers share them
                known, tokens = slots, cache.shape[2]
                places = [part for at in (slots[source], slots[target]) for part in (at // tokens, at % tokens)]
            block, place, to_block, to_place = places
            cache[to_block, :, to_place] = cache[block, :, place]
