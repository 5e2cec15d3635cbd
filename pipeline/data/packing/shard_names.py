"""What the names of foreign shards say: which there are, and the split that each belongs to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pipeline.data.store import safe_name
from pipeline.errors import ConfigError, ShardError

SplitFrom = Literal["folder", "name"]
"""What names a shard's split: its folder (train/x.tar), or its own name (train-000000.tar)."""
_SPLIT = re.compile(r"[A-Za-z0-9_-]{1,40}")


def find_tars(root: str) -> list[str]:
    """The names of all tars below a folder, in order; raises ConfigError for an address."""
    if "://" in root:
        raise ConfigError(
            f"{root} cannot be listed; name its shards: --shards 'train/train-{{000000..000099}}.tar'"
        )
    folder = Path(root)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tar"))
    if not names:
        raise ShardError(f"no *.tar in {root}; type the folder that holds the shards")
    return names


def expand_braces(pattern: str, flag: str = "--shards") -> list[str]:
    """The names that `train-{000..012}.tar` stands for; several ranges multiply."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        if "{" in pattern or "*" in pattern:
            raise ConfigError(f"{flag} {pattern}: type a range as in train-{{000000..000099}}.tar")
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if last < first or last - first >= 10**7:
        raise ConfigError(f"{flag} {pattern}: {match[0]} is no range")
    width = len(match[1]) if match[1].startswith("0") else 0
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [
        f"{before}{number:0{width}d}{rest}"
        for number in range(first, last + 1)
        for rest in expand_braces(after, flag)
    ]


def split_of(name: str, split: str, split_from: SplitFrom) -> str:
    """The split that a shard belongs to; raises ConfigError where nothing says it."""
    if not safe_name(name) or not name.endswith(".tar"):
        raise ConfigError(
            f"shard {name!r}: a shard's name has letters, digits, . - _ and / and ends in .tar; rename it"
        )
    if split:
        found = split
    elif split_from == "folder":
        found = name.rpartition("/")[0].rpartition("/")[2]
    else:
        found = re.split(r"[-_.]?\d|\.", name.rpartition("/")[2])[0]
    if _SPLIT.fullmatch(found) is None:
        raise ConfigError(
            f"shard {name} does not say its split: move it into a folder named so (train/{name}), type "
            "--split NAME, or --split-from name for names such as train-000000.tar"
        )
    return found
