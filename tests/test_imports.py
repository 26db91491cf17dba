"""Who imports whom: the rooms of the package keep to their doors."""

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastvideo_lightning"
ALLOWED = {
    "offload": {"cuda", "offload", "safetensors", "torch"},
    "config": {"config", "torch"},
    "output/files.py": set(),
    "output/video.py": {"PIL", "av", "numpy", "output.files", "output.video"},
    "prompts/dataset.py": {"config"},
    "prompts/datamodule.py": {"lightning", "prompts.dataset", "torch"},
    "prompts/files.py": {"config", "prompts.dataset"},
    "generator/generator.py": {
        "batch",
        "callbacks",
        "checkpoint.weights",
        "config",
        "generator.generator",
        "generator.placements",
        "generator.replan",
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
    "batch": {
        "batch",
        "checkpoint.folder",
        "config",
        "filelock",
        "lightning",
        "modules",
        "output.files",
        "output.video",
        "prompts.dataset",
        "torch",
        "version",
    },
    "checkpoint/folder.py": {"config", "huggingface_hub"},
    "checkpoint/hub.py": {"checkpoint.folder", "diffusers", "huggingface_hub", "tqdm"},
    "checkpoint/weights.py": {"checkpoint.folder", "checkpoint.weights", "safetensors", "torch"},
    "checkpoint/trust.py": {"checkpoint.folder", "checkpoint.weights", "diffusers"},
    "checkpoint/components.py": {
        "checkpoint.building",
        "checkpoint.folder",
        "checkpoint.trust",
        "checkpoint.weights",
        "diffusers",
        "torch",
        "transformers",
    },
    "checkpoint/building.py": {"torch"},
    "libraries.py": set(),
    "checkpoint/quantization.py": {"diffusers", "libraries", "torchao"},
    "checkpoint/pipeline.py": {
        "checkpoint.components",
        "checkpoint.folder",
        "checkpoint.hub",
        "checkpoint.quantization",
        "checkpoint.trust",
        "checkpoint.weights",
        "diffusers",
        "libraries",
        "torch",
        "transformers",
    },
    "modules": {
        "PIL",
        "av",
        "checkpoint.components",
        "checkpoint.folder",
        "checkpoint.hub",
        "checkpoint.pipeline",
        "checkpoint.weights",
        "config",
        "diffusers",
        "libraries",
        "lightning",
        "modules",
        "numpy",
        "offload.blocks",
        "output.video",
        "torch",
        "transformers",
    },
    "callbacks": {
        "callbacks",
        "config",
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
    "prompts/sampler.py": set(),
    "strategies": {
        "checkpoint.pipeline",
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
    "cli": {
        "",
        "batch",
        "callbacks",
        "checkpoint.folder",
        "checkpoint.quantization",
        "checkpoint.weights",
        "cli.app",
        "cli.batch",
        "cli.config_file",
        "cli.console",
        "cli.errors",
        "cli.generate",
        "cli.models",
        "cli.options",
        "cli.pack",
        "cli.plan",
        "cli.probe",
        "cli.serve",
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
        "serve",
        "strategies.launcher",
        "torch",
        "version",
        "yaml",
    },
    "__main__.py": {"cli.app"},
    "plan": {
        "checkpoint.folder",
        "checkpoint.hub",
        "checkpoint.quantization",
        "config",
        "diffusers",
        "huggingface_hub",
        "libraries",
        "modules",
        "offload",
        "plan",
        "platformdirs",
        "psutil",
        "rich",
        "torch",
        "tqdm",
    },
    "serve": {
        "PIL",
        "callbacks",
        "checkpoint.pipeline",
        "config",
        "filelock",
        "generator.generator",
        "gradio",
        "modules",
        "output.files",
        "output.video",
        "plan",
        "prompts.dataset",
        "report",
        "serve",
        "starlette",
        "torch",
        "uvicorn",
    },
    "pack": {
        "checkpoint.components",
        "checkpoint.folder",
        "checkpoint.pipeline",
        "checkpoint.quantization",
        "checkpoint.weights",
        "filelock",
        "modules",
        "offload",
        "pack",
        "rich",
        "torch",
    },
    "report": {"jinja2", "markupsafe", "matplotlib", "report"},
    "generator/placements.py": {
        "callbacks",
        "config",
        "generator.placements",
        "lightning",
        "modules",
        "plan",
        "torch",
    },
    "generator/replan.py": {
        "config",
        "generator.placements",
        "lightning",
        "loop",
        "modules",
        "output.video",
        "plan",
        "torch",
    },
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
