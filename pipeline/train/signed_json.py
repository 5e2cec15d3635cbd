"""Small JSON files that carry the sha256 of what they say, so that a reader knows whether they are whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError

DIGEST = "sha256"


def signed(values: Mapping[str, Any]) -> bytes:
    """The values as JSON text, with their own digest among them; none may be called `sha256`."""
    assert DIGEST not in values, values
    text = json.dumps({**values, DIGEST: _digest(values)}, indent=1, sort_keys=True)
    return f"{text}\n".encode()


def read_signed(path: Path) -> dict[str, Any]:
    """The values that `signed` wrote; raises CheckpointError, FileNotFoundError where there is no file."""
    try:
        values = json.loads(path.read_bytes())
        found = values.pop(DIGEST)
        expected = _digest(values)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    if found != expected:
        raise CheckpointError(f"{path} is damaged: it says something else than its sha256")
    return dict(values)


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
