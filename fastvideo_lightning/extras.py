"""Packages that only some choices need: whether they are there is known before anything slow."""

from importlib.util import find_spec


def check_installed(package: str, *, extra: str, needed_by: str) -> None:
    """Look for a package without importing it.

    Args:
        package: Its name, as in `import`.
        extra: Of this package's extras the one that brings it.
        needed_by: What the user chose, as in `dtype='fp8'`.

    Raises:
        ImportError: If it is not installed; names what to type.
    """
    if find_spec(package) is None:
        raise ImportError(
            f"{needed_by} needs {package}, which is not installed. "
            f'Install it: pip install "fastvideo-lightning[{extra}]"'
        )
