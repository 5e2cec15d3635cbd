"""Which addresses may be opened, and which names below them."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://|^pipe:")
_SAFE_NAME = re.compile(r"(?!.*(?:^|/)\.{1,2}(?:/|$))[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")


def is_address(root: str) -> bool:
    """True for what is meant as an address, whether it may be opened or not."""
    return _SCHEME.match(root) is not None


def safe_name(name: str) -> bool:
    """True for a plain relative name that cannot leave the root, such as `train/train-000000.tar`."""
    return _SAFE_NAME.fullmatch(name) is not None
