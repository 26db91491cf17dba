"""The attention backend of one module's videos, where diffusers has one for the whole process."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def attending(backend: str | None) -> Iterator[None]:
    """Have layers without a backend of their own use this one, as after `set_attention_backend`.

    Args:
        backend: A name that diffusers knows; None leaves things as they are.
    """
    if backend is None:
        yield
        return
    from diffusers.models.attention_dispatch import attention_backend

    with attention_backend(backend):  # type: ignore[arg-type, unused-ignore]
        yield
