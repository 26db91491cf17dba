"""Tensors as they lie in safetensors files: found by their headers, read into memory that waits.

Nothing here holds a weight; the bytes that were read are counted. The format is one length, one
JSON header and plain bytes (https://github.com/huggingface/safetensors#format).
"""

import ctypes
import hashlib
import json
import mmap
import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch

from fastvideo_lightning.checkpoint.folder import CheckpointError, check_regular


class ReadMeter:
    """Counts bytes; weights are read by several threads at once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._size_bytes = 0

    def add(self, size_bytes: int) -> None:
        """Count bytes that were read."""
        with self._lock:
            self._size_bytes += size_bytes

    def size(self) -> int:
        """Return the bytes that were read since the process began."""
        return self._size_bytes


READ = ReadMeter()


MAX_HEADER_BYTES = 100_000_000  # the bound of the reference implementation

MAX_JSON_BYTES = 32_000_000  # of a configuration or an index; the largest known have 5 MB

_FILE_NAME = re.compile(r"(?!\.)[^/\\\0]{1,255}")

PADDING = "__padding__."
"""Begin of the names of what only fills gaps in a packed file (see `pack.layout`)."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F4": torch.float4_e2m1fn_x2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Encoding(Protocol):
    """How the numbers of a weight come out of the bytes that a file has for it, row by row."""

    def shape(self, stored: torch.Size) -> torch.Size:
        """Return the shape of the weight."""
        ...

    def rows(self, start: int, stop: int) -> "Encoding":
        """Return that of the part from row `start` to before row `stop`."""
        ...

    def decode(self, stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the numbers of some rows, computed as for a run in a dtype."""
        ...


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file: `path[offset : offset + size_bytes]` are its bytes, row by row.

    Attributes:
        path: The file.
        offset: Position of the first byte.
        shape: Shape of what is stored.
        dtype: Dtype of what is stored.
        encoding: How the weight comes out of it; None where it is the weight.
    """

    path: Path
    offset: int
    shape: torch.Size
    dtype: torch.dtype
    encoding: Encoding | None = None

    @property
    def weight_shape(self) -> torch.Size:
        """Shape of the weight."""
        return self.shape if self.encoding is None else self.encoding.shape(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """Position behind the last byte in the file."""
        return self.offset + self.size_bytes

    def rows(self, start: int, stop: int) -> "StoredTensor":
        """Return the part from row `start` to before row `stop` of the first dimension."""
        row = self.shape[1:]
        offset = self.offset + start * prod(row) * self.dtype.itemsize
        encoding = None if self.encoding is None else self.encoding.rows(start, stop)
        shape = torch.Size([stop - start, *row])
        return replace(self, offset=offset, shape=shape, encoding=encoding)


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight of a model that lies in a file, and the dtype it will run in.

    It is a `WeightSource`: `read_into` may be called from several threads at once.

    Attributes:
        tensor: Where the bytes are.
        cpu_dtype: Dtype of a run on the CPU.
        accelerator_dtype: Dtype of a run on any other device.
    """

    tensor: StoredTensor
    cpu_dtype: torch.dtype
    accelerator_dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""
        return self.tensor.weight_shape

    @property
    def stored_dtype(self) -> torch.dtype:
        """Dtype in the file."""
        return self.tensor.dtype

    @property
    def file(self) -> Path:
        """The file."""
        return self.tensor.path

    @property
    def path(self) -> Path | None:
        """The file, where the weight's numbers lie there plainly."""
        return self.tensor.path if self.tensor.encoding is None else None

    @property
    def offset(self) -> int:
        """Position of the first byte in the file."""
        return self.tensor.offset

    def rows(self, start: int, stop: int) -> "StoredWeight":
        """Return the part from row `start` to before row `stop`: only its bytes are read."""
        return replace(self, tensor=self.tensor.rows(start, stop))

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """Return the dtype this weight has when the run's device is `device`."""
        return self.cpu_dtype if device.type == "cpu" else self.accelerator_dtype

    def read_into(self, out: torch.Tensor) -> None:
        """Fill `out`, a host tensor of this shape, casting to its dtype.

        Raises:
            ValueError: If `out` has another shape or is not in host memory.
            CheckpointError: If the file has shrunk since its header was read.
        """
        if out.shape != self.shape or out.device.type != "cpu":
            raise ValueError(
                f"out must be a host tensor of shape {list(self.shape)}, "
                f"got {list(out.shape)} on {out.device}."
            )
        READ.add(self.tensor.size_bytes)
        if not out.numel():
            return
        if self.tensor.encoding is not None:
            _decode(self.tensor, self.tensor.encoding, out)
        elif out.dtype == self.stored_dtype and out.is_contiguous():
            _read_bytes(self.tensor, out)
        else:
            out.detach().copy_(_map_tensor(self.tensor))

    def as_host_tensor(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight in host memory: the file itself, mapped, where no cast is needed.

        The mapping is private: writing to the tensor leaves the file alone. It starts on a page, so
        the weight lies as far from a cache line's start as in the file, which is also where
        diffusers' loader has it. CPU kernels give other last bits at other alignments (see
        https://www.intel.com/content/www/us/en/docs/onemkl/developer-guide-linux/current/reproducibility-conditions.html).
        """
        if dtype == self.stored_dtype and self.tensor.size_bytes and self.path is not None:
            return _map_tensor(self.tensor)
        memory = torch.empty(self.shape, dtype=dtype)
        self.read_into(memory)
        return memory


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name, without reading any.

    Raises:
        CheckpointError: If the file is truncated or no safetensors file.
    """
    header, start, size_bytes = _parse_header(path)
    tensors = {
        name: _parse_entry(path, start, name, entry)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    # As safetensors does: each byte belongs to one tensor.
    end_of_all = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].end)):
        if tensor.offset != end_of_all:
            state = "overlaps another" if tensor.offset < end_of_all else "comes after a hole"
            raise CheckpointError(
                f"{path} is damaged: its tensor {name!r} {state}. Download it again."
            )
        end_of_all = tensor.end
    _check_length(path, expected=end_of_all, actual=size_bytes)
    return {name: each for name, each in tensors.items() if not name.startswith(PADDING)}


def _parse_entry(path: Path, start: int, name: str, entry: Any) -> StoredTensor:
    try:
        begin, end = (_as_size(position) for position in entry["data_offsets"])
        shape, dtype = torch.Size(map(_as_size, entry["shape"])), DTYPES[entry["dtype"]]
        if dtype == torch.float4_e2m1fn_x2:  # two in each byte, along the last dimension
            shape = torch.Size([*shape[:-1], shape[-1] // 2])
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path} describes its tensor {name!r} as {entry!r:.200}, which cannot be read here."
        ) from error
    tensor = StoredTensor(path, start + begin, shape, dtype)
    if end - begin != tensor.size_bytes:
        raise CheckpointError(
            f"{path} gives {end - begin} bytes to its tensor {name!r}, which needs "
            f"{tensor.size_bytes}. The file is damaged: download it again."
        )
    return tensor


def _as_size(value: Any) -> int:
    """Return a number of bytes or elements; ValueError for what is none."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(value)
    return value


def find_tensors(folder: Path, stem: str, variant: str | None) -> dict[str, StoredTensor] | None:
    """Return every tensor of a component's safetensors files, or None where it has none.

    Args:
        folder: The component's folder.
        stem: File name without endings, such as `model`.
        variant: Middle part of the file names, such as `fp16`.

    Raises:
        CheckpointError: If a shard is missing, or a file is damaged.
    """
    dot_variant = f".{variant}" if variant else ""
    index = folder / f"{stem}.safetensors.index{dot_variant}.json"
    single = folder / f"{stem}{dot_variant}.safetensors"
    if index.exists():
        return _read_shards(index)
    if single.exists():
        return read_header(single)
    return None


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    """Return the tensors that an index file lists, each out of the shard it names."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} has no 'weight_map', so its shards cannot be found.")
    shards: dict[str, dict[str, StoredTensor]] = {}
    found = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _FILE_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{index} says that {name!r} lies in {shard!r:.80}, which is no name of a file "
                "beside it. Download the checkpoint again."
            )
        path = index.parent / shard
        if not path.exists():
            raise CheckpointError(
                f"Missing shard: {path}, which {index.name} lists. Download the checkpoint again."
            )
        if shard not in shards:
            shards[shard] = read_header(path)
        if name not in shards[shard]:
            raise CheckpointError(
                f"{path} lacks the tensor {name!r} that {index.name} says it holds."
            )
        found[name] = shards[shard][name]
    for shard, tensors in shards.items():
        if unlisted := sorted(tensors.keys() - found.keys()):
            raise CheckpointError(
                f"{index} does not list {len(unlisted)} tensors of {shard}, such as "
                f"{unlisted[0]!r}. Download the checkpoint again."
            )
    return found


def read_json(path: Path, *, infinite: bool = False) -> dict[str, Any]:
    """Return the object in a JSON file; anything else there is a CheckpointError naming it.

    Args:
        path: Of the file.
        infinite: Take `-Infinity` for a number, as diffusers writes what schedulers have.
    """
    try:
        size_bytes = check_regular(path)
        if size_bytes > MAX_JSON_BYTES:
            raise ValueError(f"it has {size_bytes} bytes")
        content = json.loads(
            path.read_text(encoding="utf-8"),
            parse_constant=_infinite if infinite else _refuse_constant,
        )
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({error}). Download the checkpoint again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def _infinite(name: str) -> float:
    return float(name) if "Infinity" in name else _refuse_constant(name)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON's")


def read_notes(path: Path) -> dict[str, Any]:
    """Return what a safetensors file's author wrote into its header; CheckpointError if damaged."""
    notes = _parse_header(path)[0].get("__metadata__")
    return notes if isinstance(notes, dict) else {}


def _parse_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header, where the bytes of the tensors begin, and the size of the file."""
    size_bytes = check_regular(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size_bytes < 8 or length > min(MAX_HEADER_BYTES, size_bytes - 8):
            file.seek(0)
            hint = " It is a git-lfs pointer: run `git lfs pull`." * file.read(7).startswith(
                b"version"
            )
            raise CheckpointError(
                f"{path} is no safetensors file, or was cut off ({size_bytes} bytes). "
                f"Download it again.{hint}"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}.") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is no safetensors file: its header is no object.")
    return header, 8 + length, size_bytes


def _check_length(path: Path, *, expected: int, actual: int) -> None:
    if actual != expected:
        state = "truncated" if actual < expected else "followed by bytes that nothing describes"
        raise CheckpointError(
            f"{path} is {state}: {actual} bytes where its header describes {expected}. "
            "Download it again."
        )


def _read_bytes(tensor: StoredTensor, out: torch.Tensor) -> None:
    """Read straight into the memory of `out`; each call has its own file position."""
    target = memoryview((ctypes.c_char * tensor.size_bytes).from_address(out.data_ptr())).cast("B")
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(tensor.offset)
        done = 0
        while done < tensor.size_bytes:
            count = file.readinto(target[done:])
            if not count:
                raise _shrunk(tensor)
            done += count


def _map_tensor(tensor: StoredTensor) -> torch.Tensor:
    """Return the tensor over a private mapping of the file: a cast from it needs no second copy."""
    start = tensor.offset - tensor.offset % mmap.ALLOCATIONGRANULARITY
    lead = tensor.offset - start
    with tensor.path.open("rb") as file:
        try:
            # A copy-on-write mapping: torch warns about memory that cannot be written to.
            mapping = mmap.mmap(
                file.fileno(), lead + tensor.size_bytes, access=mmap.ACCESS_COPY, offset=start
            )
        except ValueError as error:
            raise _shrunk(tensor) from error
    flat = torch.frombuffer(mapping, dtype=tensor.dtype, count=prod(tensor.shape), offset=lead)
    return flat.view(tensor.shape)


_DECODED_BYTES = 32 << 20
"""So much of a weight is decoded at a time: what a decoder computes on its way is wider."""


def _decode(tensor: StoredTensor, encoding: Encoding, out: torch.Tensor) -> None:
    """Fill a host tensor with the numbers that come out of what is stored, some rows at a time."""
    stored = _map_tensor(tensor)
    if not stored.dim():
        out.detach().copy_(encoding.decode(stored, out.dtype))
        return
    count = max(_DECODED_BYTES * len(out) // max(out.nbytes, 1), 1)
    for start in range(0, len(out), count):
        stop = min(start + count, len(out))
        part = encoding.rows(start, stop).decode(stored[start:stop], out.dtype)
        out.detach()[start:stop].copy_(part)


def _shrunk(tensor: StoredTensor) -> CheckpointError:
    return CheckpointError(
        f"{tensor.path} ends before byte {tensor.offset + tensor.size_bytes}: "
        "it changed after its header was read. Load the model again."
    )


READ_WHOLE_BYTES = 64 << 20


def file_key(path: str | os.PathLike[str], *, whole: bool = False) -> str:
    """Return what tells a file's content from others. See Note [Known by content].

    Args:
        path: The file.
        whole: Read all of it, however large.

    Raises:
        OSError: If it cannot be read.
    """
    real = Path(path).resolve()
    found = real.stat()
    if real.parent.name == "blobs" and real.parent.parent.name.startswith(
        ("models--", "datasets--")
    ):
        return f"hub:{real.name}:{found.st_size}"
    changes = found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
    return _read_key(os.fspath(real), changes, whole or found.st_size <= READ_WHOLE_BYTES)


@lru_cache(maxsize=4096)
def _read_key(path: str, changes: tuple[int, ...], is_whole: bool) -> str:
    with open(path, "rb") as file:
        if is_whole:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(repr(changes).encode())
        length = int.from_bytes(file.read(8), "little")
        digest.update(file.read(length if length <= MAX_HEADER_BYTES else 0))
    return f"changed:{digest.hexdigest()}"
