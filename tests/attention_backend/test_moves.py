"""Moving the KV of a step's rows, in caches of tokens and in those that are written anew."""

from types import SimpleNamespace
from typing import Any

import torch

from attention_backend.moves import KeptRows, move_rows

PAGES, GROUPS, TOKENS, SIZE = 4, 2, 8, 3


def test_rows_are_gathered_before_they_are_scattered() -> None:
    """Across pages, with overlap, whatever the order of the cache's dimensions in memory; other slots keep theirs."""
    slots = torch.tensor([9, 10, 11, 30, 31, 0, 1])
    source, target = torch.tensor([0, 2, 3, 6, 0]), torch.tensor([0, 1, 2, 3, 0])
    for strides in ((0, 1, 2, 3), (0, 2, 1, 3)):
        plain = torch.randn(PAGES, GROUPS, TOKENS, 2 * SIZE)
        cache = plain.permute(strides).contiguous().permute(strides)
        layers = {"a": SimpleNamespace(impl=object(), kv_cache=cache.clone(memory_format=torch.preserve_format))}
        move_rows(layers, {"a": slots}, source, target)
        expected = plain.transpose(1, 2).flatten(0, 1).clone()
        expected[slots[target]] = expected[slots[source]]
        assert layers["a"].kv_cache.transpose(1, 2).flatten(0, 1).equal(expected)


def test_kept_rows_are_written_once() -> None:
    class Kernel:
        def do_kv_cache_update(self, *given: Any) -> None:
            self.given = given

    class Kept(KeptRows, Kernel):
        pass

    impl, key, value = Kept(), torch.randn(5, GROUPS, SIZE), torch.randn(5, GROUPS, SIZE)
    layer, expected = SimpleNamespace(impl=impl, kv_cache="cache"), (key.clone(), value.clone())
    impl.keep(key, value)
    key.zero_()
    value.zero_()
    slots, source, target = torch.arange(5) + 20, torch.tensor([0, 2, 4]), torch.tensor([0, 1, 2])
    move_rows({"a": layer}, {"a": slots}, source, target)
    _, keys, values, cache, written = impl.given
    assert keys.equal(expected[0][source]) and values.equal(expected[1][source])
    assert cache == "cache" and written.tolist() == [20, 21, 22]
    assert impl.kept is None, "nothing is kept for later steps"
