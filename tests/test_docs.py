"""What the documents quote is what the code says."""

import ast
import re
import shlex
import tomllib
from dataclasses import fields
from functools import cache
from pathlib import Path

import click
import pytest
import yaml

import fastvideo_lightning
from fastvideo_lightning import OffloadConfig, callbacks
from fastvideo_lightning.cli.app import cli
from fastvideo_lightning.cli.options import COMMAND
from fastvideo_lightning.loop import MOMENTS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)


@cache
def texts() -> list[str]:
    """Return every text of the code, with a tilde for what a run fills in."""
    found = []
    for folder in ("fastvideo_lightning", "callbacks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (getattr(part, "value", None) for part in node.values)
                    found.append("".join(p if isinstance(p, str) else "~" for p in parts))
    return found


def test_there_are_messages_to_look_for() -> None:
    assert len(QUOTED) >= 12


@pytest.mark.parametrize("message", QUOTED)
def test_every_message_that_troubleshooting_quotes_is_in_the_code(message) -> None:
    pieces = [re.escape(piece.strip()) for piece in message.split("...") if piece.strip()]
    pattern = re.compile(r"\s*~.*?".join(pieces) if len(pieces) > 1 else pieces[0])
    assert any(pattern.search(text) for text in texts())


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = {path for entry in nav for path in entry.values()}
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_every_flag_has_a_section_on_the_page_about_offloading() -> None:
    page = (ROOT / "docs" / "offloading.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### .*$", page, flags=re.MULTILINE)
    explained = {name for heading in headings for name in re.findall(r"`(\w+)`", heading)}
    assert {field.name for field in fields(OffloadConfig)} <= explained


@pytest.mark.parametrize("package", [fastvideo_lightning, callbacks])
def test_the_reference_has_every_public_name(package) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}
    assert set(package.__all__) <= listed


def test_the_table_of_moments_has_each_with_its_arguments() -> None:
    page = (ROOT / "docs" / "writing_callbacks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", page, flags=re.MULTILINE)
    told = {moment: set(re.findall(r"`(\w+)`", arguments)) for moment, arguments in rows}
    assert list(told) == list(MOMENTS)
    assert told == {moment: set(arguments) for moment, arguments in MOMENTS.items()}


def test_architecture_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "fastvideo_lightning"
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    rooms |= {f"offload/{path.parent.name}/" for path in package.glob("offload/*/__init__.py")}
    assert rooms <= set(re.findall(r"`([\w./]+/)`", page))


def test_every_picture_is_there_and_shown() -> None:
    pages = (ROOT / "docs").glob("*.md")
    shown = {
        name for page in pages for name in re.findall(r"\]\(pictures/([^)]+)\)", page.read_text())
    }
    assert shown == {path.name for path in (ROOT / "docs" / "pictures").iterdir()}


def commands() -> list[str]:
    """Return every command that README and the pages show, each on a line of its own."""
    shown = []
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        lines += re.findall(r"(?<!`)`([^`\n]+)`", text)
        shown += [line[line.index(COMMAND) :] for line in lines if f"{COMMAND} " in line]
    return sorted({re.sub(r"\s+", " ", line) for line in shown})


@pytest.mark.parametrize("command", commands())
def test_every_command_that_is_shown_can_be_typed(command, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for word in shlex.split(command)[1:] if word != "--help"]
    for word in words:
        if (file := re.split("[:@]", word)[0]).endswith(".safetensors"):
            (tmp_path / file).touch()
    if words[0].startswith("-"):
        cli.make_context(COMMAND, words, resilient_parsing=True)
        return
    found = cli.get_command(click.Context(cli), words[0])
    assert found is not None
    settings = {"token_normalize_func": cli.context_settings["token_normalize_func"]}
    assert found.make_context(words[0], words[1:], **settings).params


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))],
)
def test_pages_name_things_in_place_of_whoever_and_what_comes(page) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert (
        re.findall(r"\b(?:what comes|what came|whoever|so many)\b.{30}", text, re.IGNORECASE) == []
    )


def test_pages_open_without_a_network() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["font"] is False
    assert settings["use_directory_urls"] is False
    added = [*settings.get("extra_css", ()), *settings.get("extra_javascript", ())]
    assert all((ROOT / "docs" / name).is_file() for name in added)


def test_the_site_is_built_strictly_where_changes_are_checked() -> None:
    assert "mkdocs build --strict" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "docs" in extras["optional-dependencies"]
