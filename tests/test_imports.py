"""Who imports whom: the rooms of the package keep to their doors."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastvideo_lightning"
ALLOWED = {
    "offload": {"torch", "safetensors", "cuda", "offload"},
    "config": {"config"},
    "naming.py": set(),
    "output.py": {"numpy", "av", "PIL", "naming", "short_repr"},
    "short_repr.py": set(),
    "prompts.py": {"config"},
    "prompt_module.py": {"torch", "lightning", "prompts"},
    "prompt_files.py": {"config", "prompts"},
    "saving.py": set(),
    "batch": {
        *("version", "torch", "lightning", "filelock", "modules", "config", "output", "prompts"),
        *("batch", "callbacks.write_behind", "checkpoint_folder", "naming"),
    },
    "checkpoint_folder.py": {"huggingface_hub", "config"},
    "downloads.py": {"huggingface_hub", "diffusers", "checkpoint_folder"},
    "weights.py": {"torch", "safetensors", "checkpoint_folder", "meter"},
    "meter.py": set(),
    "trust.py": {"diffusers", "weights"},
    "components.py": {
        *("torch", "diffusers", "transformers"),
        *("building", "checkpoint_folder", "trust", "weights"),
    },
    "building.py": {"torch"},
    "extras.py": set(),
    "imports.py": set(),
    "quantization.py": {"torchao", "diffusers", "extras"},
    "checkpoint.py": {
        "checkpoint_folder",
        "imports",
        "quantization",
        "torch",
        "diffusers",
        "transformers",
        "downloads",
        "components",
        "trust",
        "weights",
    },
    "modules": {
        *("torch", "lightning", "diffusers", "transformers", "numpy", "PIL", "av"),
        *("checkpoint", "components", "weights", "config", "imports", "output", "modules"),
        "downloads",
    },
    "callbacks": {
        "torch",
        "lightning",
        "rich",
        "offload",
        "config",
        "output",
        "callbacks",
        "report",
        "psutil",
    },
    "sharing.py": set(),
    "strategies": {
        *("torch", "lightning", "diffusers", "config", "checkpoint", "offload.partition"),
        "imports",
        *("version", "hydra", "sharing", "strategies"),
    },
    "acceleration.py": {"diffusers", "config", "modules"},
    "compiling.py": {"torch", "offload.partition"},
    "loop.py": {"torch", "lightning", "sharing"},
    "lora.py": set(),
    "options.py": {"click", "config", "option_table"},
    "option_table.py": {"click", "config", "option_types"},
    "option_files.py": {"click", "yaml", "config", "options", "option_types"},
    "option_types.py": {"click", "yaml", "config"},
    "messages.py": {"click", "options", "rich"},
    "mistakes.py": {"click", "options"},
    "__main__.py": {"cli"},
    "explanations.py": {"click", "config", "options"},
    "cli.py": {"version", "click", "messages", "options", "explanations", "commands"},
    "plan": {
        *("torch", "diffusers", "rich", "psutil", "platformdirs"),
        *("huggingface_hub", "tqdm"),
        *("checkpoint_folder", "config", "downloads", "modules", "offload", "plan"),
        "quantization",
    },
    "serve": {
        *(
            "gradio",
            "starlette",
            "uvicorn",
            "filelock",
            "torch",
            "PIL",
            "config",
            "modules",
            "output",
            "checkpoint",
        ),
        *("callbacks", "generator", "plan", "prompts", "report", "serve"),
    },
    "commands": {
        *("version", "click", "rich", "torch", "commands", "messages", "mistakes", "options"),
        *("option_files", "config", "prompts", "prompt_files", "output", "devices", "weights"),
        *("modules", "callbacks", "generator", "batch", "inventory", "pack", "plan", "serve"),
        *("checkpoint_folder", "extras", "option_table", "option_types", "quantization"),
        "report",
        "strategies.launching",
    },
    "pack": {
        "quantization",
        *("torch", "rich", "filelock", "modules", "checkpoint_folder"),
        *("checkpoint", "components", "weights", "offload", "pack"),
    },
    "report": {"matplotlib", "jinja2", "markupsafe", "report"},
    "placing.py": {
        *("torch", "lightning", "acceleration", "callbacks", "config", "modules", "placements"),
        "plan",
    },
    "replanning.py": {
        *("torch", "lightning", "config", "loop", "modules", "output", "placements", "placing"),
        "plan",
    },
    "generator.py": {
        *("placing", "plan", "replanning"),
        *("torch", "lightning", "callbacks", "config", "devices", "loop", "modules", "output"),
        *("acceleration", "batch", "compiling", "lora", "meter", "placements", "prompts"),
        *("saving", "strategies"),
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
