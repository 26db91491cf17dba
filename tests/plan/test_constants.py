"""The fitted numbers of a plan stand in one table of the documents."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import fastvideo_lightning.plan

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(\w+)\.([A-Z_]+)` \| ([^|]+) \|.*\| ([^|]*)\|$", flags=re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs" / "planning.md").read_text(encoding="utf-8"))
NOT_FITTED = {"MIB", "GIB", "PASSES", "PCIE_BYTES_PER_S", "CARDS", "TILE_PIXELS", "TILE_STRIDE"}


@pytest.mark.parametrize(("module", "name", "value", "files"), ROWS)
def test_a_constant_is_what_the_table_says_and_its_results_are_there(module, name, value, files):
    held = getattr(import_module(f"fastvideo_lightning.plan.{module}"), name)
    values = list(held.values()) if isinstance(held, dict) else [held]
    assert [float(number) for number in value.split(",")] == values
    for file in re.findall("`([^`]+)`", files):
        assert (ROOT / "benchmarks" / "results" / f"{file}.json").is_file()


@pytest.mark.parametrize("module", ["machine", "cost", "activations", "predict", "vae_cost"])
def test_every_fitted_constant_has_its_row(module):
    path = Path(fastvideo_lightning.plan.__file__).with_name(f"{module}.py")
    names = {
        target.id
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        for target in ast.walk(node.targets[0])
        if isinstance(target, ast.Name) and not target.id.startswith("_")
    }
    told = {name for room, name, *_ in ROWS if room == module}
    assert names - NOT_FITTED == told
