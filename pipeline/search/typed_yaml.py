"""YAML that is typed for a search, with every value as text: the fields say what values are.

Where YAML guesses, 5:40 is a time of day, off is false, and of a name that is there twice the last counts.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError, one_line


def read_typed_yaml(flag: str, path: Path) -> Any:  # noqa: ANN401 - whatever was typed
    """Texts, lists and mappings; raises ConfigError, naming the flag, for a file that cannot be read.

    A name that a mapping has twice is an error; FileNotFoundError is the caller's.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_TextLoader)  # noqa: S506 - text alone
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{flag} {path} cannot be read ({one_line(error)})") from error


class _TextLoader(yaml.BaseLoader):
    """PyYAML's loader of text alone."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [str(key.value) for key, _ in node.value]
        twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
        if twice is not None:
            problem = f"{twice} is there twice, of which one would do nothing"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)
