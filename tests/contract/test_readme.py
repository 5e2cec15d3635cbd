"""The README tells the truth about the tree: every source file, with its own first line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
FOLDERS = ("pipeline", "jobs", "benchmarks")


def tree_lines() -> list[str]:
    """`path  first line of the docstring` for every module with code."""
    lines = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name != "__init__.py":
                docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
                summary = re.split(r"[:;] |: `", docstring.splitlines()[0])[0].rstrip(".:")
                lines.append(f"{path.relative_to(ROOT).as_posix():<42}{summary}")
    return lines


def test_the_tree_names_every_file_by_its_own_first_line():
    absent = [line for line in tree_lines() if line not in README]
    assert absent == [], "\n" + "\n".join(tree_lines())


def test_files_that_the_readme_links_to_are_there():
    links = re.findall(r"\]\(([^)#]+)", README)
    gone = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert links
    assert gone == []


def test_proofs_that_the_readme_names_are_there():
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", README))
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_tests_that_the_table_of_faults_names_are_there():
    tests = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    file, named = "", []
    for match in re.finditer(
        r"`(test_\w+\.py)?(?:::(test_\w+))?`", (ROOT / "docs/fault-tolerance.md").read_text()
    ):
        file = match[1] or file  # `::test_x` is in the file named before
        named.append((file, match[2]))
    assert len(named) > 50
    assert [(f, t) for f, t in named if f not in tests or (t and f"def {t}(" not in tests[f])] == []
