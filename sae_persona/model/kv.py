"""Keys and values that grow in place.

`DynamicCache` copies everything it holds at every token, in every block. Here most tokens are written into room
that was left for them.

Axes: `row` answers, `head` key-value heads, then positions.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

States = Float[Tensor, "row head _ d_head"]
ROOM = 32
"""Positions that are left free when what is held must be copied: 32 make copying a thirtieth of what it was."""


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """The cache of a model, empty, whose full-attention blocks grow in place; sliding ones are transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _GrowingLayer(DynamicLayer):
    """`keys` and `values` are the beginnings of longer tensors."""

    _key_room: States | None = None
    _value_room: States | None = None

    def update(self, key_states: States, value_states: States, *_args: Any, **_kwargs: Any) -> tuple[States, States]:
        """Everything so far, with the new positions at the end."""
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
            keys, values = key_states, value_states
        else:
            keys, self._key_room = _appended(self.keys, self._key_room, key_states)
            values, self._value_room = _appended(self.values, self._value_room, value_states)
        self.keys, self.values = keys, values
        return keys, values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, copied; the room of the others is given up."""
        super().batch_select_indices(indices)
        self._key_room = self._value_room = None


def _appended(held: States, room: States | None, new: States) -> tuple[States, States]:
    n, end = held.shape[-2], held.shape[-2] + new.shape[-2]
    if room is None or end > room.shape[-2]:
        room = held.new_empty((*held.shape[:-2], end + ROOM, held.shape[-1]))
        room[..., :n, :] = held
    room[..., n:end, :] = new
    return room[..., :end, :], room
