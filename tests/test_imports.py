"""Who imports whom: the rooms of the package keep to their doors."""

import ast
import importlib
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fastvideo_lightning

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastvideo_lightning"
ALLOWED = {
    "version.py": set(),
    "libraries.py": set(),
    "config": {"config", "torch"},
    "prompts": {"config", "libraries", "lightning", "output.files", "prompts", "torch"},
    "output": {"PIL", "av", "libraries", "numpy", "output"},
    "checkpoint": {
        "checkpoint",
        "config",
        "diffusers",
        "gguf",
        "huggingface_hub",
        "libraries",
        "torch",
        "torchao",
        "tqdm",
        "transformers",
    },
    "offload": {"cuda", "greenlet", "offload", "torch", "triton"},
    "offload/coding": {"offload.coding", "offload.tensors", "torch", "triton"},
    "offload/tensors": {"offload.handles", "offload.tensors", "torch"},
    "offload/host": {
        "offload.coding",
        "offload.host",
        "offload.profiling",
        "offload.stream_driver",
        "offload.tensors",
        "torch",
    },
    "offload/distributed": {"offload", "torch"},
    "report": {"jinja2", "markupsafe", "matplotlib", "output.files", "report"},
    "callbacks": {
        "callbacks",
        "config.checks",
        "libraries",
        "lightning",
        "offload",
        "output.files",
        "output.video",
        "psutil",
        "report",
        "rich",
        "torch",
    },
    "modules": {
        "PIL",
        "av",
        "checkpoint",
        "config",
        "diffusers",
        "libraries",
        "lightning",
        "modules",
        "numpy",
        "offload.blocks",
        "output.video",
        "prompts.dataset",
        "torch",
        "transformers",
    },
    "strategies": {
        "checkpoint.weights",
        "config",
        "diffusers",
        "hydra",
        "libraries",
        "lightning",
        "offload.blocks",
        "prompts.sampler",
        "strategies",
        "torch",
        "version",
    },
    "loop.py": {"lightning", "prompts.sampler", "torch"},
    "batch": {
        "batch",
        "checkpoint.folder",
        "config",
        "jinja2",
        "lightning",
        "modules",
        "output.files",
        "output.thumbnails",
        "output.video",
        "prompts.dataset",
        "torch",
        "version",
    },
    "plan": {
        "checkpoint.hub",
        "checkpoint.parts",
        "checkpoint.quantization",
        "config",
        "diffusers",
        "libraries",
        "modules",
        "offload",
        "plan",
        "platformdirs",
        "psutil",
        "rich",
        "torch",
    },
    "pack": {
        "checkpoint",
        "filelock",
        "modules",
        "offload.blocks",
        "offload.tensors.bindings",
        "offload.tensors.layout",
        "output.files",
        "pack",
        "rich",
        "torch",
    },
    "generator": {
        "batch",
        "callbacks",
        "checkpoint.weights",
        "config",
        "generator",
        "libraries",
        "lightning",
        "loop",
        "modules",
        "output.files",
        "output.video",
        "plan",
        "prompts.dataset",
        "strategies",
        "torch",
    },
    "serve": {
        "PIL",
        "callbacks",
        "checkpoint.pipeline",
        "config",
        "filelock",
        "generator.generator",
        "gradio",
        "jinja2",
        "modules",
        "output.files",
        "plan",
        "prompts.dataset",
        "report",
        "serve",
        "starlette",
        "torch",
        "uvicorn",
    },
    "cli": {
        "",
        "batch",
        "callbacks",
        "checkpoint.folder",
        "checkpoint.parts",
        "checkpoint.quantization",
        "cli",
        "click",
        "config",
        "generator.generator",
        "libraries",
        "modules",
        "output.files",
        "output.video",
        "pack",
        "plan",
        "prompts.dataset",
        "prompts.files",
        "report",
        "rich",
        "serve.limits",
        "serve.server",
        "serve.studio",
        "strategies.launcher",
        "torch",
        "version",
        "yaml",
    },
    "__main__.py": {"cli.app"},
}


def imported(path: Path) -> set[str]:
    """Names of the packages, and of this package's rooms, that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    rooms = set()
    for name in names:
        top, _, rest = name.partition(".")
        if top == "fastvideo_lightning":
            rooms.add(rest)
        elif top not in sys.stdlib_module_names:
            rooms.add(top)
    return rooms


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room):
    place = PACKAGE / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    assert files
    for path in files:
        for name in imported(path):
            ok = any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED[room])
            assert ok, f"{path.relative_to(ROOT)} imports {name}"


def arrows() -> dict[str, set[str]]:
    """Return which files of the package each file imports, lazily or for type checkers too."""
    files = {}
    for path in (*PACKAGE.rglob("*.py"), *(PACKAGE / "callbacks").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in files:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= {full if full in files else node.module for full in inner}
    return found


def test_no_file_is_in_a_circle():
    TopologicalSorter(arrows()).prepare()  # CycleError names the files


def test_no_room_is_in_a_circle():
    rooms: dict[str, set[str]] = {}
    for name, others in arrows().items():
        room, *_ = name.split(".")[1:] or [""]
        found = {other.split(".")[1] for other in others if "." in other}
        rooms.setdefault(room, set()).update(found)
    TopologicalSorter({room: to - {room} for room, to in rooms.items()}).prepare()


def test_five_files_lie_beside_the_rooms():
    names = {path.name for path in PACKAGE.glob("*.py")}
    assert names == {"__init__.py", "__main__.py", "version.py", "loop.py", "libraries.py"}


def test_importing_the_package_imports_nothing_slow():
    code = (
        "import sys, fastvideo_lightning, fastvideo_lightning.callbacks\n"
        "slow = {'torch', 'lightning', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_importing_the_folder_names_the_right_import():
    result = subprocess.run(
        [sys.executable, "-c", "import callbacks"], cwd=ROOT, capture_output=True, text=True
    )
    assert "from fastvideo_lightning.callbacks import" in result.stderr


@pytest.mark.parametrize("name", ["fastvideo_lightning", "fastvideo_lightning.callbacks"])
def test_every_public_name_resolves(name):
    module = __import__(name, fromlist=["__all__"])
    for public in module.__all__:
        assert getattr(module, public) is not None
    with pytest.raises(AttributeError, match="Nonsense"):
        module.Nonsense  # noqa: B018


def test_every_folder_of_code_is_packaged():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(listed) == names | {"fastvideo_lightning.callbacks"}


@pytest.mark.parametrize("name", fastvideo_lightning._EARLIER)
def test_what_the_docs_have_published_is_found_where_it_was(name):
    earlier = importlib.import_module(f"fastvideo_lightning.{name}")
    now = importlib.import_module(f"fastvideo_lightning.{fastvideo_lightning._EARLIER[name]}")
    public = [known for known in vars(now) if not known.startswith("_")]
    assert all(getattr(earlier, known) is getattr(now, known) for known in public)
