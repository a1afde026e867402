"""Memory of the CPU that the system gives when it is written to, in huge pages or in small ones."""

import mmap
import sys
from contextlib import suppress

import torch
from torch import Tensor


def reserve(num_bytes: int, is_huge: bool) -> Tensor:
    """So many bytes, zero.

    Weights are streamed, and through pages of 2 MB a processor streams twice as fast as through pages of 4 KB. A cache
    is written here and there: a page of 2 MB for each layer, slot and head would hold a few tokens and much nothing.
    """
    if sys.platform != "linux" or num_bytes == 0:
        return torch.zeros(num_bytes, dtype=torch.uint8)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel built without huge pages has small ones only
        memory.madvise(mmap.MADV_HUGEPAGE if is_huge else mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
