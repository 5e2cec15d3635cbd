"""An ObjectStore in memory, for tests that begin anew some hundred times.

That it answers as a server does is shown by tests/unit/data/test_objects.py, which runs on both.
"""

import hashlib
import threading
from pathlib import Path

from pipeline.data.store.objects import Tagged
from pipeline.errors import ShardError


class ObjectsInMemory:
    """What an ObjectStore does, with the objects of `there`: name → content."""

    def __init__(self, root: str, there: dict[str, bytes]) -> None:
        self.root, self._there, self._lock = root, there, threading.Lock()

    def names(self, folder: str) -> dict[str, int]:
        with self._lock:
            return {n: len(data) for n, data in sorted(self._there.items()) if n.startswith(folder)}

    def read(self, name: str) -> Tagged | None:
        data = self._there.get(name)
        return None if data is None else Tagged(data, _tag(data))

    def size(self, name: str) -> int | None:
        return self.names("").get(name)

    def create(self, name: str, data: bytes) -> bool:
        with self._lock:
            return self._there.setdefault(name, data) == data

    def replace(self, name: str, data: bytes, tag: str) -> str | None:
        with self._lock:
            if name not in self._there or _tag(self._there[name]) not in (tag, _tag(data)):
                return None
            self._there[name] = data
            return _tag(data)

    def put(self, name: str, path: Path) -> None:
        data = path.read_bytes()
        with self._lock:
            self._there[name] = data

    def fetch(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if name not in self._there:
            raise ShardError(f"{name} is not there")
        path.write_bytes(self._there[name])

    def remove(self, name: str) -> None:
        with self._lock:
            self._there.pop(name, None)

    def heeds_conditions(self, name: str) -> bool:
        return name in self._there

    def close(self) -> None:
        pass


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'
