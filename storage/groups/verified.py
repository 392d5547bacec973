"""What the manifests list, as a mapping that Zarr reads from; every object is verified when it is fetched."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, MutableMapping, Sequence

from zarr.abc.buffer import Buffer
from zarr.buffer import default_buffer_prototype

from logitbank.errors import CorruptStoreError
from logitbank.storage.objects import ObjectEntry, ObjectStore, read_manifest, read_object, read_objects


class VerifiedObjects(MutableMapping[str, Buffer]):
    """Zarr's view of the store: whole objects that the manifests list, verified when fetched."""

    def __init__(self, objects: ObjectStore, keep_bytes: int = 1 << 26) -> None:
        self._objects = objects
        self._entries: dict[str, ObjectEntry] = {}
        self._recent: OrderedDict[str, Buffer] = OrderedDict()
        self._recent_bytes = 0
        self._keep_bytes = keep_bytes

    def add_manifest(self, key: str) -> None:
        """Make the objects of one manifest readable."""
        entries, _ = read_manifest(self._objects, key)
        self._entries |= entries

    def __getitem__(self, key: str) -> Buffer:
        if key in self._recent:
            return self._recent[key]
        if key not in self._entries and "/c/" in key:  # never let Zarr fill a gap with zeros
            raise CorruptStoreError(f"{key}: no manifest lists this chunk")
        return self._keep(key, read_object(self._objects, key, self._entries[key]))

    def fetch(self, keys: Sequence[str]) -> None:
        """Read and keep several objects at once."""
        for key, data in zip(keys, read_objects(self._objects, keys, self._entries, ""), strict=True):
            self._keep(key, data)

    def _keep(self, key: str, data: bytes) -> Buffer:
        buffer: Buffer = default_buffer_prototype().buffer.from_bytes(data)
        self._recent[key] = buffer
        self._recent_bytes += len(data)
        while self._recent_bytes > self._keep_bytes and len(self._recent) > 1:
            _, dropped = self._recent.popitem(last=False)
            self._recent_bytes -= len(dropped)
        return buffer

    def __setitem__(self, key: str, value: Buffer) -> None:
        raise TypeError("a store is read-only here")

    def __delitem__(self, key: str) -> None:
        raise TypeError("a store is read-only here")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
