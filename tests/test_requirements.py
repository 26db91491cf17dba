"""What pyproject.toml brings is what is used."""

import ast
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def brought_by(extra: str) -> set[str]:
    """What can be imported where the package is installed with an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    waiting = [*project["dependencies"], *extras[extra]]
    seen: set[str] = set()
    found: set[str] = set()
    while waiting:
        if (line := waiting.pop()) in seen:
            continue
        seen.add(line)
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name == project["name"]:
            waiting += [further for e in requirement.extras for further in extras[e]]
            continue
        found.add(name)
        environments = [{"extra": e} for e in ("", *requirement.extras)]
        for further in metadata.requires(name) or []:
            marker = Requirement(further).marker
            if marker is None or any(map(marker.evaluate, environments)):
                waiting.append(further.partition(";")[0])
    packages = metadata.packages_distributions().items()
    return {top for top, names in packages if found & {canonicalize_name(n) for n in names}}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


def test_the_extra_of_the_tests_brings_all_that_they_import() -> None:
    folders = (ROOT, ROOT / "tests", ROOT / "examples")
    known = brought_by("test") | {path.stem for folder in folders for path in folder.iterdir()}
    for folder in ("tests", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            assert imported(path) <= known, path.relative_to(ROOT)
