"""Image embeddings of slices: computed once for a volume and a model, kept in memory and on disk within bounds.

`key` names a slice, `cache` keeps embeddings in memory and asks `disk` for the rest, `slice_file` is the form of one
file, `encoder` computes what is nowhere.
"""

from lib.embeddings.cache import CacheStats, EmbeddingCache
from lib.embeddings.disk import DiskCache, DiskStats
from lib.embeddings.encoder import STORED_DTYPE, SliceEncoder, VolumeEmbeddings, slab_lengths
from lib.embeddings.key import SliceKey

__all__ = [
    "STORED_DTYPE",
    "CacheStats",
    "DiskCache",
    "DiskStats",
    "EmbeddingCache",
    "SliceEncoder",
    "SliceKey",
    "VolumeEmbeddings",
    "slab_lengths",
]
