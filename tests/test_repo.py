"""The rules of the repository itself: sizes, packaging, names, docstrings, README, decisions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import prunepass
from prunepass.cli.catalogue import catalogue
from prunepass.criteria import criteria
from prunepass.manager import passes
from prunepass.registry import options

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(p for folder in ("prunepass", "passes") for p in (ROOT / folder).rglob("*.py"))
ALL_CODE = sorted([*SOURCES, *(p for f in ("tests", "benchmarks", "fixtures") for p in (ROOT / f).rglob("*.py"))])
HEADINGS = ("Source", "Shapes", "Units", "Reads", "Writes", "Raises", "Example")
AIM_FILE, MOST_FILE, AIM_FUNCTION, MOST_FUNCTION = 300, 500, 40, 60

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def name_of(path: Path) -> str:
    """Return a path as messages show it."""
    return path.relative_to(ROOT).as_posix()


def too_long(aim_file: int, aim_function: int) -> list[str]:
    """Return files and functions over a limit, with their length in lines."""
    found = []
    for path in ALL_CODE:
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > aim_file:
            found.append(f"{name_of(path)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and not name_of(path).startswith("tests/"):  # tests are tables
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > aim_function:
                    found.append(f"{name_of(path)}: {node.name} {length} lines")
    return found


def test_files_and_functions_are_short(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        for line in too_long(AIM_FILE, AIM_FUNCTION):
            sys.stdout.write(f"\nover the aim of {AIM_FILE} / {AIM_FUNCTION}: {line}")
    assert too_long(MOST_FILE, MOST_FUNCTION) == []


def package_list() -> list[str]:
    """Return the packages that pyproject.toml names."""
    found = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return sorted(re.findall(r'"(.+?)"', found.group(1)))


def test_packages_are_the_folders() -> None:
    folders = {p.parent for p in SOURCES}
    packages = [name_of(p).replace("/", ".") for p in folders]
    assert package_list() == sorted(f"prunepass.{p}" if p.startswith("passes") else p for p in packages)
    assert [name_of(p) for p in folders if not (p / "__init__.py").exists()] == []


def test_pass_names_agree() -> None:
    own = {name: cls for name, cls in passes().items() if cls.__module__.startswith("prunepass.passes.")}
    assert own
    for name, cls in own.items():
        assert cls.__module__.rpartition(".")[2] == name.replace("-", "_")
        assert cls.__name__ == "".join(word.capitalize() for word in name.split("-"))
    modules = {p.stem for p in (ROOT / "passes").glob("*/*.py")} - {"__init__"}
    assert modules == {name.replace("-", "_") for name in own}


def test_every_option_has_a_default() -> None:
    for cls in passes().values():
        assert all("MISSING" not in option.default for option in options(cls)), cls.name


def public_things(path: Path) -> Iterator[tuple[str, str | None]]:
    """Yield the public classes, functions and methods of a module with their docstrings, and the module itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield name_of(path), ast.get_docstring(tree)
    yield from _public(tree.body, name_of(path))


def _public(body: list[ast.stmt], where: str) -> Iterator[tuple[str, str | None]]:
    for node in body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            decorators = " ".join(ast.unparse(d) for d in node.decorator_list)
            if ".row(" not in decorators and ".setter" not in decorators:  # the operator says what a row is
                yield f"{where}: {node.name}", ast.get_docstring(node)
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, f"{where}: {node.name}")


def docstring_fault(doc: str | None) -> str | None:
    """Say what is wrong with the docstring of a public thing, or nothing."""
    if not doc:
        return "no docstring"
    first, *rest = doc.splitlines()
    if not first.endswith((".", "?")) or not first[0].isupper():
        return f"the first line is no sentence: {first}"
    used = [m.group(1) for line in rest if (m := re.match(r"([A-Z][a-z]+)(:|$)", line))]
    known = [HEADINGS.index(word) for word in used if word in HEADINGS]
    alone = [line for line in rest if re.fullmatch(r"[A-Z][a-z]+:?", line) and line.rstrip(":") not in HEADINGS]
    if alone:
        return f"unknown heading {alone[0]}"
    return None if known == sorted(known) else f"headings out of order: {used}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_docstrings(path: Path) -> None:
    faults = [f"{where}: {fault}" for where, doc in public_things(path) if (fault := docstring_fault(doc))]
    assert not faults, "\n" + "\n".join(faults)


def test_the_docstring_check_sees_faults() -> None:
    assert docstring_fault("Cut it.\n\nUnits\n    x: bytes\nRaises\n    E: when") is None
    assert docstring_fault(None) == "no docstring"
    assert "no sentence" in (docstring_fault("cut it") or "")
    assert "unknown heading" in (docstring_fault("Cut it.\n\nArgs\n    x: y") or "")
    assert "out of order" in (docstring_fault("Cut it.\n\nRaises\n    E: when\nUnits\n    x: bytes") or "")


def test_first_lines_fit_the_list() -> None:
    for name, cls in {**passes(), **criteria()}.items():
        first = (cls.__doc__ or "").partition("\n")[0]
        assert 0 < len(first) <= 115, f"{name}: {len(first)} characters: {first}"


def test_every_criterion_names_its_source() -> None:
    assert criteria()
    for name, cls in criteria().items():
        assert re.search(r"^\s*Source\b", cls.__doc__ or "", re.MULTILINE), name


def readme_blocks() -> dict[str, str]:
    """Return the code blocks of README.md that a comment names."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- (\S+) -->\n```\w*\n(.*?)```", text, re.DOTALL))


def test_readme_has_the_list() -> None:
    assert readme_blocks()["list"].strip() == catalogue().strip(), "refresh it: python -m prunepass --list"


def test_readme_has_the_two_commands() -> None:
    blocks = readme_blocks()
    assert "-m prunepass fixtures/digits.onnx" in blocks["command-1"]
    assert "pytest" in blocks["command-2"]
    assert all(len(blocks[name].strip().splitlines()) == 1 for name in ("command-1", "command-2"))


def test_versions_agree() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)[0] == prunepass.__version__


def test_decisions_are_numbered_and_short() -> None:
    files = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(p.name[:4]) for p in files] == list(range(1, len(files) + 1))
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 20, name_of(path)
        assert all(f"**{part}.**" in text for part in ("Context", "Choice", "Cost")), name_of(path)


def test_no_paths_of_a_machine() -> None:
    texts = [p for s in ("py", "md", "toml", "yaml", "json", "txt") for p in ROOT.rglob(f"*.{s}")]
    tracked = [p for p in texts if not any(part.startswith((".venv", "build", ".mypy", ".hyp")) for part in p.parts)]
    pattern = re.compile(r"/" + r"(tmp|root|work|home|Users)/[a-z]")
    assert [name_of(p) for p in tracked if pattern.search(p.read_text(encoding="utf-8"))] == []


def test_import_is_quick() -> None:
    heavy = "onnx onnxruntime numpy scipy rich networkx onnx_graphsurgeon"
    code = f"import sys, prunepass; print(*[m for m in '{heavy}'.split() if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_every_public_name_can_be_imported() -> None:
    for name in prunepass.__all__:
        assert getattr(prunepass, name).__doc__, name
    assert set(prunepass.__all__) <= set(dir(prunepass))
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        prunepass.prun  # noqa: B018
