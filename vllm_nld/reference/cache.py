"""The reference's KV cache: plain tensors that grow by concatenation and shrink by slicing.

Letters in shapes: N sequences, T new tokens, S cached + new tokens, G key/value heads, D head size.
"""

from dataclasses import dataclass, field

import torch


@dataclass
class KVCache:
    """Rotated keys and values, one [N, G, S, D] tensor per layer; both lists are empty before the first forward."""

    num_layers: int
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Number of cached tokens."""
        return self.keys[0].shape[2] if self.keys else 0

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add one layer's new rows [N, G, T, D] and return all of its rows [N, G, S, D]."""
        if len(self.keys) <= layer:
            self.keys.append(keys)
            self.values.append(values)
        else:
            self.keys[layer] = torch.cat([self.keys[layer], keys], dim=2)
            self.values[layer] = torch.cat([self.values[layer], values], dim=2)
        return self.keys[layer], self.values[layer]

    def truncate(self, length: int) -> None:
        """Drop every row from index `length` on."""
        self.keys = [keys[:, :, :length] for keys in self.keys]
        self.values = [values[:, :, :length] for values in self.values]

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only `rows`, [n] int64 indices into S, in this order."""
        self.keys = [keys[:, :, rows] for keys in self.keys]
        self.values = [values[:, :, rows] for values in self.values]
