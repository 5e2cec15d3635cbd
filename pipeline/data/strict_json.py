"""JSON that somebody else wrote, read strictly: whatever is odd is one ShardError that names its place.

Strict: UTF-8 without a byte order mark, no field twice in an object, no fractions (nothing here has
any), no NaN. Counts are bounded, so that sums of them neither wrap round in NumPy's int64 nor ask for
absurd memory. Texts of another's making are shortened where a message shows them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from reprlib import Repr
from typing import Any, NoReturn

from pipeline.errors import ShardError

AGAIN = "copy the data set again or pack again"
"""What helps against most of these errors."""
MOST = 2**53
"""The largest count: what every JSON reader keeps exactly."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHOW = Repr()
_SHOW.maxstring = _SHOW.maxother = 80


def parse_json(data: bytes, where: str) -> object:
    """The value of a JSON text; raises ShardError naming `where` it stands."""
    try:
        return json.loads(
            data.decode(), object_pairs_hook=_each_once, parse_float=_no_count, parse_constant=_no_count
        )
    except RecursionError:
        raise ShardError(f"{where} is nested too deeply to be what it should; {AGAIN}") from None
    except ValueError as error:
        raise ShardError(f"{where} is not JSON ({error}); {AGAIN}") from error


def shown(value: object) -> str:
    """The value as a message shows it: on one line, and short however long it is."""
    return _SHOW.repr(value)


def as_object(value: object, where: str) -> dict[str, Any]:
    """The value where it is an object."""
    if not isinstance(value, dict):
        raise ShardError(f"{where}: an object is expected where {shown(value)} stands; {AGAIN}")
    return value


def refuse_unknown(content: Mapping[str, Any], known: Set[str], where: str) -> None:
    """Raises ShardError for a field that the format does not have, which a lie could hide in."""
    if not content.keys() <= known:
        raise ShardError(f"{where}: unknown field {shown(min(content.keys() - known))}; {AGAIN}")


def text_field(content: Mapping[str, Any], field: str, where: str) -> str:
    """A text that is not empty."""
    value = content.get(field)
    if not isinstance(value, str) or not value:
        raise ShardError(f"{where}: {field!r} is {shown(value)}, not a text; {AGAIN}")
    return value


def count_field(content: Mapping[str, Any], field: str, where: str, most: int = MOST) -> int:
    """A whole number from 0 to `most`."""
    value = content.get(field)
    if type(value) is not int or not 0 <= value <= most:
        raise ShardError(f"{where}: {field!r} is {shown(value)}, not a count of 0 to {most}; {AGAIN}")
    return value


def digest_field(content: Mapping[str, Any], field: str, where: str) -> str:
    """A sha256 as 64 lower-case hex digits."""
    value = content.get(field)
    if not isinstance(value, str) or _DIGEST.fullmatch(value) is None:
        raise ShardError(f"{where}: {field!r} is {shown(value)}, not the 64 hex digits of a sha256; {AGAIN}")
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a field stands twice in one object")
    return content


def _no_count(number: str) -> NoReturn:
    raise ValueError(f"{number[:40]} is no whole number")
