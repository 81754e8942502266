"""A training step whose kernels a GPU replays, where it would run them faster than a CPU can launch them."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
_N_AS_THEY_ARE = 3
"""Calls before the recording, in which kernels are compiled and optimisers make their state."""


class Recorded(Generic[Result]):
    """A function of a tensor of one shape that changes other tensors in place and never waits for the device.

    Its first calls are made as they are, the next is recorded as a CUDA graph, and all others replay it: they copy
    their tensor to where the recorded one was, and their result is that of the recorded call, written anew.
    """

    def __init__(self, function: Callable[[Tensor], Result]) -> None:
        self._function = function
        self._n_calls = 0
        self._recording: tuple[torch.cuda.CUDAGraph, Tensor, Result] | None = None

    def __call__(self, x: Tensor) -> Result:
        """The function of `x`; the result lasts until the next call."""
        self._n_calls += 1
        if self._n_calls <= _N_AS_THEY_ARE:
            return self._function(x)
        if self._recording is None:
            graph, there = torch.cuda.CUDAGraph(), x.clone()
            # Other threads may go on to bring batches to the device.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = self._function(there)
            self._recording = graph, there, result
        graph, there, result = self._recording
        there.copy_(x)
        graph.replay()
        return result
