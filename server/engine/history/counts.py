"""Binds `native/counts.cpp`: how often tokens followed which contexts, in a table of bounded size."""

import ctypes
from array import array
from ctypes import Structure, c_float, c_int, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

ENTRY_BYTES = 24
BUCKET_BYTES = 4 * ENTRY_BYTES
CONTEXTS = 6
"""Contexts that each token is counted in."""
LONGEST_CONTEXT = 8
LEAST_BUCKETS, MOST_BUCKETS = 1, 32
"""Powers of two."""


class Source(Structure):
    _fields_ = [("counts", c_void_p), ("salt", c_uint64), ("weight", c_int32)]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled table; None in a build without a compiler."""
    path = next((Path(__file__).parent / "native").glob("counts.*so"), None)
    if path is None:
        return None
    native = ctypes.CDLL(str(path))
    native.counts_new.argtypes = [c_int]
    native.counts_new.restype = c_void_p
    native.counts_free.argtypes = [c_void_p]
    native.counts_free.restype = None
    native.counts_add.argtypes = [c_void_p, c_uint64, c_void_p, c_int, c_int]
    native.counts_add.restype = None
    native.counts_draft.argtypes = [c_void_p, c_int, c_void_p, c_int, c_int, c_int, c_float, c_void_p]
    native.counts_draft.restype = c_int
    native.counts_save.argtypes = [c_void_p, c_int, c_void_p, c_int64]
    native.counts_save.restype = c_int64
    native.counts_load.argtypes = [c_void_p, c_void_p, c_int64]
    native.counts_load.restype = None
    return native


class Counts:
    """A table of contexts and their followers that never grows: where it is full, rare contexts make room."""

    def __init__(self, num_contexts: int) -> None:
        """Room for at least so many, a power of two; raises `MemoryError` where there is none."""
        native = library()
        assert native is not None
        self.native = native
        log_buckets = max((num_contexts - 1) // 4, 0).bit_length()
        self.log_buckets = min(max(log_buckets, LEAST_BUCKETS), MOST_BUCKETS)
        self.handle: int | None = native.counts_new(self.log_buckets)
        if self.handle is None:
            raise MemoryError(f"no memory for a history of {self.nbytes >> 20} MiB")

    @classmethod
    def of_bytes(cls, nbytes: int) -> "Counts":
        """The largest table within so many bytes."""
        num_buckets = max(nbytes // BUCKET_BYTES, 1 << LEAST_BUCKETS)
        return cls(4 << (num_buckets.bit_length() - 1))

    @property
    def nbytes(self) -> int:
        """Once all of it was written to."""
        return BUCKET_BYTES << self.log_buckets

    def __del__(self) -> None:
        if getattr(self, "handle", None) is not None:
            self.native.counts_free(self.handle)

    def add(self, salt: int, ids: list[int], first: int) -> None:
        """Counts the tokens from `first` on, each as what followed those before it."""
        begin = max(first - LONGEST_CONTEXT, 0)
        seen = array("i", ids[begin:])
        self.native.counts_add(self.handle, salt, seen.buffer_info()[0], first - begin, len(seen))

    def entries(self, least_visits: int = 1) -> Tensor:
        """The contexts that were seen so often, as bytes [contexts, `ENTRY_BYTES`]."""
        size = self.native.counts_save(self.handle, least_visits, None, 0)
        entries = torch.empty(size, ENTRY_BYTES, dtype=torch.uint8)
        self.native.counts_save(self.handle, least_visits, entries.data_ptr(), size)
        return entries

    def load(self, entries: Tensor) -> None:
        """Takes in what `entries` gave, of this table or another."""
        entries = entries.contiguous()
        self.native.counts_load(self.handle, entries.data_ptr(), len(entries))


def tokens_of(entries: Tensor) -> Tensor:
    """The two followers of each entry [contexts, 2]; -1 is none."""
    return entries.contiguous().view(torch.int32)[:, 2:4]
