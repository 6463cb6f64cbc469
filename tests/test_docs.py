"""What docstrings promise is true: documented errors have tests, examples run, names are listed, modules are small."""

from __future__ import annotations

import ast
import builtins
import doctest
import importlib
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from eucaim_fl import errors

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "eucaim_fl").rglob("*.py"))
LARGEST_MODULE_LINES = 400

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Public:
    """A public function, method or class: where it is, what a test calls it, and what it says of itself."""

    where: str
    called: str
    docstring: str


@cache
def tree(path: Path) -> ast.Module:
    """A file, parsed."""
    return ast.parse(path.read_text())


@cache
def classes() -> dict[str, ast.ClassDef]:
    """All classes of the package by name."""
    return {node.name: node for path in MODULES for node in tree(path).body if isinstance(node, ast.ClassDef)}


@cache
def public() -> list[Public]:
    """All that the package offers."""
    return [found for path in MODULES for found in public_names(path)]


def listed(body: list[ast.stmt]) -> list[str] | None:
    """`__all__` of a module."""
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if ast.unparse(target) == "__all__":
                return list(ast.literal_eval(node.value))
    return None


def overrides_a_documented(owner: ast.ClassDef, method: str) -> bool:
    """Whether a base class of the package says already what the method does."""
    for base in owner.bases:
        parent = classes().get(ast.unparse(base).partition("[")[0].rpartition(".")[2])
        if parent is not None and (
            any(isinstance(n, Documented) and n.name == method and ast.get_docstring(n) for n in parent.body)
            or overrides_a_documented(parent, method)
        ):
            return True
    return False


def public_names(path: Path) -> Iterator[Public]:
    """What one module's `__all__` offers, with its methods; a constructor is called by its class's name."""
    body = tree(path).body
    offered = listed(body) or []
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for node in body:
        if not isinstance(node, Documented) or node.name not in offered:
            continue
        yield Public(f"{module}.{node.name}", node.name, ast.get_docstring(node) or "")
        for inner in node.body if isinstance(node, ast.ClassDef) else []:
            if not isinstance(inner, ast.FunctionDef):
                continue
            text = ast.get_docstring(inner) or ""
            if inner.name == "__init__":
                yield Public(f"{module}.{node.name}", node.name, text or "the class says it")
            elif not inner.name.startswith("_"):
                documented = text or ("its base says it" if overrides_a_documented(node, inner.name) else "")
                yield Public(f"{module}.{node.name}.{inner.name}", inner.name, documented)


def promised(docstring: str) -> set[str]:
    """Names of the errors in the docstring's sentences that start with Raises.

    >>> text = "Do it. Raises DataError if a, or\\n b; ReplyError if c. Not ValueError.\\n\\nRaises what x does."
    >>> sorted(promised(text))
    ['DataError', 'ReplyError']
    """
    sentences = re.findall(r"\bRaises\b(.*?)(?:\.\s|\.$|\n\n|$(?![\s\S]))", docstring, re.DOTALL | re.MULTILINE)
    return {name for sentence in sentences for name in re.findall(r"\b[A-Z]\w*(?:Error|Interrupt)\b", sentence)}


@cache
def errors_with_tests() -> dict[str, set[str]]:
    """Function or class → errors with which some test calls it inside `with pytest.raises(…)`."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.With | ast.AsyncWith):
                continue
            expected: set[str] = set()
            for item in node.items:
                call = item.context_expr
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.raises" and call.args:
                    expected |= {name.rpartition(".")[2] for name in re.findall(r"[\w.]+", ast.unparse(call.args[0]))}
            if expected:
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Call):
                        found[ast.unparse(inner.func).rpartition(".")[2]] |= expected
    return found


def kind(name: str) -> type[BaseException]:
    """The exception of that name."""
    found = getattr(errors, name, None) or getattr(builtins, name)
    assert issubclass(found, BaseException)
    return found  # type: ignore[no-any-return]


def is_tested(error: str, expected: set[str]) -> bool:
    """Whether the error, or a special case of it, is among those that tests expect."""
    known = [getattr(errors, name, None) or getattr(builtins, name, None) for name in expected]
    return any(isinstance(found, type) and issubclass(found, kind(error)) for found in known)


class TestDocumentedErrors:
    def test_every_one_has_a_test_that_calls_what_raises_it(self) -> None:
        seen = errors_with_tests()
        missing = [
            f"{one.where}: {error}"
            for one in public()
            for error in sorted(promised(one.docstring))
            if not is_tested(error, seen[one.called])
        ]
        assert not missing, "\n".join(["No test for:", *missing])

    def test_they_are_found_at_all(self) -> None:
        assert sum(len(promised(one.docstring)) for one in public()) > 100
        assert "JournalError" in errors_with_tests()["encode_arrays"]

    def test_their_names_exist(self) -> None:
        for one in public():
            for error in promised(one.docstring):
                assert kind(error), one.where


class TestDocstrings:
    def test_everything_public_has_one(self) -> None:
        assert not [one.where for one in public() if not one.docstring]

    @pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
    def test_a_module_says_what_it_is_for(self, path: Path) -> None:
        assert (ast.get_docstring(tree(path)) or "").strip()

    @pytest.mark.parametrize(
        "path", [path for path in MODULES if ">>>" in path.read_text()], ids=lambda path: str(path.relative_to(ROOT))
    )
    def test_examples_are_true(self, path: Path) -> None:
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        outcome = doctest.testmod(module)
        assert outcome.attempted > 0
        assert outcome.failed == 0


class TestModules:
    @pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
    def test_what_is_public_is_listed_and_what_is_listed_exists(self, path: Path) -> None:
        body = tree(path).body
        if len(body) == 1 or path.name == "__main__.py":  # a docstring alone; the command
            return
        names = listed(body)
        assert names is not None, "__all__ is missing"
        assert sorted(set(names)) == sorted(names)
        defined = {name for node in body for name in self.defined_by(node)}
        assert set(names) <= defined
        own = {node.name for node in body if isinstance(node, Documented) and not self.is_registered(node)}
        assert {name for name in own if not name.startswith("_")} <= set(names)

    def defined_by(self, node: ast.stmt) -> set[str]:
        if isinstance(node, Documented):
            return {node.name}
        if isinstance(node, ast.Import | ast.ImportFrom):
            return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        return {name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)}

    def is_registered(self, node: Documented) -> bool:
        """A command or a handler: `@app.train()` hands it to somebody else, and nobody calls it by its name."""
        return any(isinstance(d, ast.Call) and isinstance(d.func, ast.Attribute) for d in node.decorator_list)

    @pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
    def test_it_has_a_size_that_can_be_read(self, path: Path) -> None:
        assert len(path.read_text().splitlines()) <= LARGEST_MODULE_LINES
