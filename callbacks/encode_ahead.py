"""EncodeAhead: the next prompt is encoded on the CPU while the GPU denoises the current one."""

import inspect
from collections.abc import Mapping
from threading import Thread
from typing import Protocol, runtime_checkable

import torch
from torch import nn


class EncodePrompt(Protocol):
    """What turns a prompt into embeddings: a diffusers pipeline's own method."""

    def __call__(self, *args: object, **kwargs: object) -> object:  # noqa: D102
        ...


@runtime_checkable
class Encodes(Protocol):
    """A pipeline that has one."""

    encode_prompt: EncodePrompt


class EncodeAhead:
    """Encodes the next prompt on a thread while the current video is denoised.

    For text encoders that compute on the CPU beside a GPU (`CPUExecution`): one that shares the GPU
    would only take the denoiser's time. The pipeline's own `encode_prompt` is called as for the
    current prompt, with the next one's texts; when the pipeline then asks for the same, it is given
    what came out, so not a bit differs. Whatever else it asks for is computed as ever, and so is
    all where `encode_prompt` takes more than texts and numbers, such as an image.
    """

    def __init__(self) -> None:
        self.num_used = 0
        self._pipeline: Encodes | None = None
        self._batch: Mapping[str, object] = {}
        self._next: Mapping[str, object] | None = None
        self._asked: dict[str, object] | None = None
        self._encoding: _Encoding | None = None

    def on_predict_batch_start(
        self,
        module: nn.Module,
        batch: Mapping[str, object],
        next_batch: Mapping[str, object] | None = None,
    ) -> None:
        """Look over the pipeline's shoulder, and remember what comes next."""
        self._batch, self._next = batch, next_batch
        pipeline: object = getattr(module, "pipeline", None)
        if self._pipeline is None and isinstance(pipeline, Encodes):
            self._wrap(pipeline)

    def on_denoise_step_start(self, module: nn.Module, step: int) -> None:
        """Begin with the next prompt once the denoiser is at work."""
        if step or self._asked is None or self._next is None or self._encoding is not None:
            return
        arguments = _with_texts(self._asked, self._batch, self._next)
        if all(_is_plain(value) for value in arguments.values()):
            self._encoding = _Encoding(self._encode, arguments, _weights_of(module))
            self._encoding.start()

    def on_predict_batch_end(self) -> None:
        """Wait for the thread: between batches weights may be edited."""
        if self._encoding is not None:
            self._encoding.join()
        self._asked = None

    def on_predict_end(self) -> None:
        """Leave the pipeline as it was."""
        self.teardown()

    def on_exception(self) -> None:
        """Leave the pipeline as it was."""
        self.teardown()

    def teardown(self) -> None:
        """Leave the pipeline as it was, and forget what was encoded ahead."""
        encoding, self._encoding = self._encoding, None
        if encoding is not None:
            encoding.join()
        if self._pipeline is not None:
            vars(self._pipeline).pop("encode_prompt", None)
        self._pipeline = self._next = self._asked = None

    def _wrap(self, pipeline: Encodes) -> None:
        self._pipeline, self._encode = pipeline, pipeline.encode_prompt
        signature = inspect.signature(self._encode)

        def encode_prompt(*args: object, **kwargs: object) -> object:
            arguments = dict(signature.bind(*args, **kwargs).arguments)
            self._asked = arguments
            ahead, self._encoding = self._encoding, None
            if ahead is not None and ahead.answers(arguments):
                self.num_used += 1
                return ahead.result
            return self._encode(*args, **kwargs)

        pipeline.encode_prompt = encode_prompt


class _Encoding(Thread):
    """One call of `encode_prompt` on a thread of its own."""

    def __init__(
        self,
        encode: EncodePrompt,
        arguments: dict[str, object],
        weights: list[nn.Parameter],
    ) -> None:
        super().__init__(name="encode-ahead")
        self.result: object = None
        self._encode, self._arguments = encode, arguments
        self._weights, self._versions = weights, _versions(weights)
        # A thread begins on the first GPU's default stream.
        self._stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
        self._failed = False

    def run(self) -> None:
        """Encode; what goes wrong is left for the pipeline's own call to meet."""
        try:
            with torch.no_grad(), torch.cuda.stream(self._stream):
                self.result = self._encode(**self._arguments)
        except Exception:
            self._failed = True

    def answers(self, arguments: dict[str, object]) -> bool:
        """Whether this is what was asked for, computed with the weights as they are now."""
        self.join()
        is_same = arguments == self._arguments and _versions(self._weights) == self._versions
        return is_same and not self._failed


def _with_texts(
    asked: dict[str, object], batch: Mapping[str, object], following: Mapping[str, object]
) -> dict[str, object]:
    """Return the arguments with the batch's texts replaced by the following one's."""
    arguments = dict(asked)
    for name in ("prompt", "negative_prompt"):
        old, new = batch.get(name), following.get(name)
        for argument, value in arguments.items():
            if value == old and (old is not None or argument == name):
                arguments[argument] = new
            elif value == [old]:
                arguments[argument] = [new]
    return arguments


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(part) for part in value)
    return isinstance(value, str | int | float | torch.device | torch.dtype | None)


def _weights_of(module: nn.Module) -> list[nn.Parameter]:
    names: tuple[str, ...] = getattr(module, "text_encoders", ())
    return [weight for name in names for weight in module.get_submodule(name).parameters()]


def _versions(weights: list[nn.Parameter]) -> list[int]:
    return [weight._version for weight in weights]
