"""Batches on the device that is to use them."""

from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from sae_persona.cache.prefetch import prefetched


def on_device(batches: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The same batches on `device`.

    To a GPU they are copied by a thread, from page-locked memory and on a stream of its own, while it computes with the
    batch before; nobody who uses them has to wait for the copy.
    """
    if device.type != "cuda":
        return (batch.to(device) for batch in batches)
    return prefetched(_copied(batches, device, torch.cuda.current_stream(device)), n_ahead=2)


def on_host(tensor: Tensor) -> Tensor:
    """A tensor in main memory; from a GPU it comes by way of page-locked memory, to which the bus is fastest."""
    if not tensor.is_cuda:
        return tensor.cpu()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


def _copied(
    batches: Iterator[Tensor], device: torch.device, in_use: "torch.cuda.Stream"
) -> Generator[Tensor, None, None]:
    copying = torch.cuda.Stream(device)
    for batch in batches:
        if batch.device.type != "cpu":  # computed there, by the thread that is this one's source
            yield batch.to(device)
            continue
        with torch.cuda.stream(copying):
            copied = batch.pin_memory().to(device, non_blocking=True)
        copying.synchronize()
        copied.record_stream(in_use)  # or its memory would be given to the next copy while it is still read
        yield copied
