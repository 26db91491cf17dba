"""What of a checkpoint could run code, and does not: pickles, and code beside the weights."""

from pathlib import Path

from fastvideo_lightning.checkpoint.folder import CheckpointError
from fastvideo_lightning.checkpoint.weights import read_json

_LIBRARIES = ("diffusers", "transformers")
_CONFIGS = ("config.json", "tokenizer_config.json", "preprocessor_config.json")
_NEVER_RUN = (
    "Code that comes with a checkpoint is never run. Build the pipeline yourself if you trust it, "
    "and pass it to VideoModule.from_pipeline."
)


def check_code(folder: Path, name: str, library: str, class_name: str) -> None:
    """Refuse a component whose class is no part of diffusers or transformers.

    A class that is known has its own code; what the checkpoint has beside it is not looked at.

    Args:
        folder: The pipeline's folder.
        name: The component.
        library: Where `model_index.json` says its class is.
        class_name: The class.

    Raises:
        CheckpointError: If code from the checkpoint, or from anywhere else, would be needed.
    """
    from diffusers import pipelines

    if library not in _LIBRARIES and not hasattr(pipelines, library):
        raise CheckpointError(
            f"model_index.json in {folder} lists {name} as {library}.{class_name}, which is no "
            f"part of diffusers or transformers. {_NEVER_RUN}"
        )
    if not class_name.startswith("Auto"):
        return
    for config in (folder / name / file for file in _CONFIGS):
        if config.is_file() and "auto_map" in read_json(config):
            raise CheckpointError(
                f"{config} asks for code of its own (auto_map). {_NEVER_RUN}",
            )


def check_pickle(folder: Path, *, allow_pickle: bool) -> None:
    """Refuse pickled weights, unless they were asked for.

    Raises:
        CheckpointError: Names the file.
    """
    if allow_pickle:
        return
    pickle = min(folder.glob("*.bin*"))
    raise CheckpointError(
        f"{pickle} is a pickle, which can run code of its author. Pass allow_pickle=True if "
        "you trust it, or a checkpoint with .safetensors files."
    )
