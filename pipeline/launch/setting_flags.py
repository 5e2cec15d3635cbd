"""Settings on a command line: `--section.field value`, with the standard library alone.

Names with a dot are settings; they go through `pipeline.settings`, so that the command line,
searches and recorded runs mean the same by them. Jobs and torchrun both read them here.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Sequence
from typing import Any

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.settings import flatten


def split_settings(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The tokens that are not settings, and dotted name → text for those that are.

    `--a.b value` and `--a.b=value` mean the same, and so do `-` and `_` inside a name. Raises
    ConfigError where a setting has no value, or a setting or flag is typed twice.
    """
    rest: list[str] = []
    settings: dict[str, str] = {}
    tokens = iter(argv)
    for token in tokens:
        name, equals, value = token[2:].partition("=")
        if not token.startswith("--") or "." not in name:
            rest.append(token)
            continue
        name = name.replace("-", "_")
        if not equals:
            value = next(tokens, "--")
        if value.startswith("--"):
            raise ConfigError(f"--{name} takes a value: type --{name} VALUE")
        if name in settings:
            raise ConfigError(f"--{name} was typed twice, with {settings[name]} and {value}")
        settings[name] = value
    refuse_repeated_flags(rest)
    return rest, settings


def refuse_repeated_flags(tokens: Sequence[str]) -> None:
    """Raises ConfigError for a `--flag` that is typed twice, of which one would silently do nothing."""
    seen: set[str] = set()
    for token in tokens:
        name = token.partition("=")[0].replace("_", "-")
        if token.startswith("--") and len(token) > len("--"):
            if name in seen:
                raise ConfigError(f"{name} was typed twice; leave out one of them")
            seen.add(name)


def settings_help(config: Config) -> str:
    """Every setting, its value in `config`, and its docstring."""
    lines = ["\nsettings (--section.field VALUE; the values shown are this recipe's):"]
    for name, value in flatten(config).items():
        owner: Any = config
        for section in name.split(".")[:-1]:
            owner = getattr(owner, section)
        text = field_docstrings(type(owner)).get(name.rpartition(".")[2], "")
        lines.append(f"  --{name} {value}")
        lines.extend(textwrap.wrap(text, 96, initial_indent=" " * 8, subsequent_indent=" " * 8))
    return "\n".join(lines) + "\n"


def field_docstrings(section: type[Any]) -> dict[str, str]:
    """Field name → the docstring under it in the source of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            found[statement.target.id] = " ".join(str(following.value.value).split())
    return found
