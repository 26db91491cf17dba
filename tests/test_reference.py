"""Every name of the reference has an example, and every example runs."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
PARTS = re.findall(r"^::: (\S+)\n((?:(?!^:::|^## ).*\n)*)", PAGE, flags=re.MULTILINE)
EXAMPLES = {
    name.rpartition(".")[2]: re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for name, text in PARTS
}


def test_there_are_as_many_parts_as_names():
    assert len(EXAMPLES) == PAGE.count("\n::: ") >= 35


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_name_has_an_example_that_uses_it_and_runs(name, tmp_path, monkeypatch, capsys):
    (example,) = EXAMPLES[name]
    shown = {"Plan": "make_plan", "GeneratedVideo": "video", "VideoBatch": "batch"}
    shown |= {"Machine": "machine", "OffloadStats": "stats", "BlockList": "find_block_lists"}
    assert shown.get(name, name) in example
    monkeypatch.chdir(tmp_path)
    exec(compile(example, f"docs/api.md, {name}", "exec"), {"__name__": "__example__"})
