"""Prompt files: text, JSON lines or CSV, one video each line.

Whatever is wrong with a file is found here, with the number of its line, before a model is loaded.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, get_args

from fastvideo_lightning.config import SamplingParams, check_known, nearest_name
from fastvideo_lightning.prompts.dataset import (
    LocatedPrompts,
    PromptFileError,
    check_name,
    check_prompt,
)

STDIN = "-"

# A line's number, counted from 1, and what reads it: a ValueError if that line alone is wrong.
Line = tuple[int, Callable[[], dict[str, Any]]]

# Parsed and checked, a line takes many times its size in memory.
_MAX_LINE_BYTES, _MAX_FILE_BYTES = 1 << 20, 256 << 20

_FIELDS = SamplingParams.__dataclass_fields__
_JSON_KINDS = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
_RIGHT_LINES = {
    ".jsonl": ['A right line: {"prompt": "a red circle moves right", "seed": 7}'],
    ".csv": ["A right file:", "  prompt,seed", '  "a red circle, moving right",7'],
}


def read_prompt_file(path: str | os.PathLike[str]) -> LocatedPrompts:
    r"""Read the prompts of a file, each with the sampling parameters that stand beside it.

    `.txt` holds a prompt a line; `.jsonl` an object a line, as in
    `{"prompt": "a red circle", "seed": 7}`; `.csv` a header line that names the columns, `prompt`
    one of them. In both, `name` is what the video's file is called, each another. UTF-8 with
    or without BOM, lines ending in `\n`, `\r\n` or `\r`; empty lines are passed over.

    Args:
        path: The file; `-` is stdin, JSON lines where it begins with `{` and text otherwise.

    Returns:
        For each prompt a dictionary with `prompt`, `name` and `SamplingParams` fields, as
        `PromptDataset` takes them; `locations` says where each is from.

    Raises:
        PromptFileError: If lines are wrong; names each.
        ValueError: If the file is of another kind or has no prompts.
        OSError: If it cannot be read.
    """
    name = "stdin" if path == STDIN else os.fspath(path)
    read = None if path == STDIN else _reader_for(name)
    content = _read_bytes(path)
    _check_sizes(content, name)
    text = _decode(content, name)
    if read is None:
        read = _read_jsonl if text.lstrip().startswith("{") else _read_txt
    prompts, wrong = LocatedPrompts(), []
    try:
        for number, read_values in read(text, name):
            try:
                with _at_line(name, number):
                    prompts.add(_check(read_values()), _place(name, number))
            except ValueError as error:
                wrong.append(str(error))
    except ValueError as error:  # from here on nothing can be told apart
        wrong.append(str(error))
    wrong += prompts.repeated_names()
    if wrong:
        suffix = ".jsonl" if read is _read_jsonl else Path(name).suffix.lower()
        raise PromptFileError(wrong, _RIGHT_LINES.get(suffix, []))
    if not prompts:
        raise ValueError(f"{name} holds no prompts. Write one a line.")
    return prompts


def _reader_for(name: str) -> Callable[[str, str], Iterator[Line]]:
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".csv": _read_csv}
    suffix = Path(name).suffix.lower()
    if suffix not in readers:
        raise ValueError(
            f"prompts must be a file that ends in {', '.join(readers)}, or - for stdin, got "
            f"{name!r}. Pass a file such as prompts.txt with a prompt a line."
        )
    return readers[suffix]


def _check_sizes(content: bytes, name: str) -> None:
    """Raise ValueError if the file, or a line of it, is larger than any that holds prompts."""
    if len(content) > _MAX_FILE_BYTES:
        raise ValueError(
            f"{name} holds more than {_MAX_FILE_BYTES >> 20} MiB. Split it into several files."
        )
    wrong = [
        f"{_place(name, number)}: {len(line)} bytes are too many for a line, "
        f"{_MAX_LINE_BYTES} is the most. Shorten it."
        for number, line in enumerate(content.splitlines(), start=1)
        if len(line) > _MAX_LINE_BYTES
    ]
    if wrong:
        raise PromptFileError(wrong)


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    if path == STDIN and sys.stdin is None:
        raise ValueError("prompts: stdin is closed. Pipe prompts into it, or pass a file.")
    try:
        if path == STDIN:
            return _read_some(sys.stdin.buffer)
        with Path(os.path.expanduser(path)).open("rb") as file:
            return _read_some(file)
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        kind = type(error) if isinstance(error, OSError) else ValueError
        raise kind(
            f"prompts: {os.fspath(path)!r} cannot be read: {reason}. Pass an existing file."
        ) from error


def _read_some(file: BinaryIO) -> bytes:
    """Read all of it, or the little more than the most by which it is known to be too large."""
    pieces: list[bytes] = []
    while (piece := file.read(1 << 20)) and len(pieces) << 20 <= _MAX_FILE_BYTES:
        pieces.append(piece)
    return b"".join(pieces)


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name}, line {number}: this is not UTF-8 text. Save the file as UTF-8."
        ) from error


def _place(name: str, number: int) -> str:
    return f"{name}, line {number}"


@contextmanager
def _at_line(name: str, number: int) -> Iterator[None]:
    """Put the place before what is wrong with a line."""
    try:
        yield
    except (TypeError, ValueError, RecursionError, csv.Error) as error:
        mend = " Close each quote, and double those within." if isinstance(error, csv.Error) else ""
        stop = "." if mend else ""
        raise ValueError(f"{_place(name, number)}: {error}{stop}{mend}") from error


def _read_txt(text: str, name: str) -> Iterator[Line]:
    for number, line in _lines(text):
        yield number, partial(dict, prompt=line.strip())


def _read_jsonl(text: str, name: str) -> Iterator[Line]:
    return ((number, partial(_read_object, line)) for number, line in _lines(text))


def _read_object(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line, object_pairs_hook=_join_pairs, parse_int=_parse_int)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON: {error.msg} at column {error.colno}. Write one object a line."
        ) from error
    if not isinstance(values, dict):
        got = _JSON_KINDS.get(type(values), "a number")
        raise ValueError(f"expected an object, got {got}. Write one object a line.")
    return values


def _parse_int(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:  # Python reads no more than some thousands
        raise ValueError(f"a number of {len(digits)} digits is too long. Shorten it.") from error


def _join_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(zip(_field_names(name for name, _ in pairs), (v for _, v in pairs), strict=True))


def _read_csv(text: str, name: str) -> Iterator[Line]:
    first, _, _ = text.lstrip("\r\n").partition("\n")
    # European spreadsheets write semicolons; the names of the columns hold none of the three.
    delimiter = max(",;\t", key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        number = rows.line_num + 1
        with _at_line(name, number):
            cells = next(rows, None)
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _read_header(cells)
                continue
        yield number, partial(_read_row, header, cells)


def _read_header(cells: list[str]) -> list[str]:
    header = _field_names(cell.strip() for cell in cells)
    known = ("prompt", "name", *_FIELDS)
    # A misspelt prompt is told as that; without either, another name's nearest would mislead.
    if "prompt" not in (*header, *(nearest_name(name, known) for name in header)):
        raise ValueError(
            f"the header names no column prompt, got {', '.join(header)}. Name one of them so."
        )
    check_known(header, known, "the header")
    return header


def _read_row(header: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        raise ValueError(
            f"expected {len(header)} columns as in the header, got {len(cells)}. "
            "Quote texts with commas."
        )
    pairs = zip(header, cells, strict=True)
    return {field: _read_cell(field, cell) for field, cell in pairs if cell.strip()}


def _read_cell(field: str, cell: str) -> object:
    """Turn a cell into what the field holds; what it cannot be is left for the field to refuse."""
    kind = _FIELDS[field].type if field in _FIELDS else str
    kinds = (kind, *get_args(kind))
    try:
        if int in kinds:
            return int(cell)
        if float in kinds:
            return float(cell)
    except ValueError:
        pass
    return cell.strip()


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Number the lines, leaving out the empty ones; only what ends lines in files ends one here."""
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line.strip():
            yield number, line.removesuffix("\n")


def _field_names(given: Iterable[str]) -> list[str]:
    """Return names with underscores; one that comes twice is a ValueError."""
    names = [name.replace("-", "_") for name in given]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice. Keep one of the two.")
    return names


def _check_keys(keys: Iterable[str]) -> None:
    known = ("prompt", "name", *_FIELDS)
    for key in keys:
        if key not in known:
            near = nearest_name(key, known)
            hint = f"Did you mean {near!r}?" if near else f"Known are: {', '.join(known)}."
            raise ValueError(f"there is no key {key!r}. {hint}")


def _check(values: dict[str, Any]) -> dict[str, Any]:
    """Check a line's values as `PromptDataset` would, here where the line is known."""
    _check_keys(values)
    given = {name: value for name, value in values.items() if value is not None}
    if "prompt" not in given:
        raise ValueError("there is no prompt. Write the text of one.")
    prompt = check_prompt(given.pop("prompt"))
    named = {"name": check_name(given.pop("name"))} if "name" in given else {}
    params = SamplingParams.from_mapping(given)
    for field in ("image_path", "last_image_path", "video_path"):
        path = getattr(params, field)
        if path is not None and not os.path.isfile(path):
            raise ValueError(f"{field}: there is no file {path!r}. Pass an existing one.")
    return {"prompt": prompt, **named, **given}
