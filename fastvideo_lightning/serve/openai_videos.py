"""Videos over HTTP at `/v1/videos`, in the shape that OpenAI's client speaks."""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any
from uuid import uuid4

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route, Router

from fastvideo_lightning.config import SamplingParams, check_known
from fastvideo_lightning.serve.jobs import Job, JobState, Request
from fastvideo_lightning.serve.middleware import App, Receive, Scope, Send
from fastvideo_lightning.serve.queue import FullQueueError
from fastvideo_lightning.serve.studio import Studio

_PATH = "/v1/videos"
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
_OWN = ("prompt", "model", "seconds", "size", "input_reference")
# They would name files of the server, or open any that a pipeline's argument names.
_NOT_SENT = ("image_path", "last_image_path", "video_path", "pipeline_arguments")
_SENT = [each.name for each in fields(SamplingParams) if each.name not in _NOT_SENT]
_TEXT = ("negative_prompt", "scheduler")
_NUMBERS = ("guidance_scale", "guidance_scale_2", "flow_shift")
_KINDS = ("multipart/form-data", "application/json", "application/x-www-form-urlencoded")
_STATUS = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.DONE: "completed",
}


class _FieldError(ValueError):
    """A field of a request is wrong."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


class OpenAIVideos:
    """An ASGI application before Gradio that answers what is asked of `/v1/videos`.

    Args:
        app: What answers everything else.
        studio: What makes the videos.
        folder: Where images that are sent are kept.
    """

    def __init__(self, app: App, *, studio: Studio, folder: Path) -> None:
        self._app, self._studio, self._folder = app, studio, folder
        routes = [
            Route(_PATH, self._create, methods=["POST"]),
            Route(_PATH + "/{id}", self._retrieve),
            Route(_PATH + "/{id}/content", self._content),
        ]
        # No application: it would answer 500 where the guard answers 413 or 408.
        self._videos = ExceptionMiddleware(Router(routes), {HTTPException: _answer_status})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        is_ours = scope["type"] == "http" and f"{scope['path']}/".startswith(f"{_PATH}/")
        await (self._videos if is_ours else self._app)(scope, receive, send)

    async def _create(self, http: HttpRequest) -> Response:
        origin = http.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != http.headers.get("host"):
            return _refuse(403, f"Requests from pages of {origin} are not taken.", code="origin")
        try:
            given = await _read_body(http)
            job = await run_in_threadpool(self._submit, given)
        except FullQueueError as error:
            return _refuse(429, str(error), kind="rate_limit_error", code="queue_full")
        except (TypeError, ValueError, OSError, RecursionError) as error:
            return _refuse(400, str(error), name=getattr(error, "name", None))
        return JSONResponse(self._describe(job))

    async def _retrieve(self, http: HttpRequest) -> Response:
        return JSONResponse(self._describe(self._find(http)))

    async def _content(self, http: HttpRequest) -> Response:
        job = self._find(http)
        variant = http.query_params.get("variant", "video")
        if variant != "video":
            message = f"variant must be video, got {variant!r}. Pass variant=video."
            return _refuse(400, message, name="variant")
        progress = self._studio.look(job)
        if progress.state is not JobState.DONE:
            message = f"Video {job.id} is {progress.state.value}: it has no content."
            return _refuse(400, message, code="not_completed")
        if not progress.files[0].is_file():
            return _refuse(404, f"The file of video {job.id} was removed.", code="not_found")
        return FileResponse(progress.files[0], media_type="video/mp4")

    def _find(self, http: HttpRequest) -> Job:
        job = self._studio.find(http.path_params["id"])
        if job is None:
            raise HTTPException(404, f"There is no video {http.path_params['id']!r} here.")
        return job

    def _submit(self, given: dict[str, Any]) -> Job:
        check_known(given, [*_OWN, *_SENT], "/v1/videos")
        self._check_model(given.pop("model", None))
        prompt, image = given.pop("prompt", ""), given.pop("input_reference", None)
        if not isinstance(prompt, str):
            raise _FieldError(f"prompt must be text, got {prompt!r}. Pass a string.", "prompt")
        sampling = self._read_sampling(given)
        if image is None:
            return self._studio.submit(Request(prompt, SamplingParams(**sampling)))
        path = self._folder / f"{uuid4().hex}.image"
        path.write_bytes(image)
        try:
            params = SamplingParams(**sampling, image_path=path)
            return self._studio.submit(Request(prompt, params))
        except BaseException as error:
            path.unlink()
            if str(path) in str(error):
                message = str(error).replace(str(path), "input_reference")
                raise _FieldError(message, "input_reference") from error
            raise

    def _check_model(self, name: object) -> None:
        if name not in (None, self._studio.model.name):
            served = self._studio.model.name
            raise _FieldError(
                f"model must be {served!r}, which is served here, got {name!r}. "
                f"Pass model={served!r}, or leave it out.",
                "model",
            )

    def _read_sampling(self, given: dict[str, Any]) -> dict[str, Any]:
        sampling = {name: _number(name, value) for name, value in given.items() if name in _SENT}
        if (size := given.get("size")) is not None:
            _check_alone("size", sampling, ("width", "height"))
            if not isinstance(size, str) or (sides := _SIZE.fullmatch(size)) is None:
                raise _FieldError(
                    f"size must be WIDTHxHEIGHT in pixels, got {size!r}. Pass size='832x480'.",
                    "size",
                )
            sampling |= {"width": int(sides[1]), "height": int(sides[2])}
        if (seconds := given.get("seconds")) is not None:
            _check_alone("seconds", sampling, ("num_frames",))
            fps = sampling.get("fps") or self._studio.defaults.fps
            assert fps is not None
            sampling["num_frames"] = _count_frames(seconds, fps)
        return sampling

    def _describe(self, job: Job) -> dict[str, Any]:
        progress, params = self._studio.look(job), job.request.params
        status = _STATUS.get(progress.state, "failed")
        error = None
        if status == "failed":
            error = {"code": progress.state.value, "message": progress.message}
        percent = 100 * progress.step // progress.num_steps if progress.num_steps else 0
        fps, num_frames = params.fps, params.num_frames
        assert fps is not None
        assert num_frames is not None
        return {
            "id": job.id,
            "object": "video",
            "model": self._studio.model.name,
            "status": status,
            "progress": 100 if status == "completed" else min(percent, 99),
            "created_at": int(job.created_at),
            "completed_at": int(job.finished_at) if status == "completed" else None,
            "expires_at": None,
            "error": error,
            "prompt": job.request.prompt,
            "remixed_from_video_id": None,
            "seconds": f"{(num_frames - 1) / fps:g}",
            "size": f"{params.width}x{params.height}",
        }


async def _read_body(http: HttpRequest) -> dict[str, Any]:
    """Return what was sent, as JSON or as form data; a file of a form as its bytes."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _KINDS:
        raise ValueError(f"The body must be one of {', '.join(_KINDS)}, got {kind!r}.")
    if kind == "application/json":
        content = await http.json()
        if not isinstance(content, dict):
            raise ValueError(f"The body must be an object, got {content!r}.")
        if content.get("input_reference") is not None:
            raise _FieldError(
                "input_reference must be a file. Send it as multipart form data.",
                "input_reference",
            )
        return content
    async with http.form(max_files=1, max_fields=len(_SENT) + len(_OWN)) as form:
        given: dict[str, Any] = {}
        for name, value in form.multi_items():
            if name in given:
                raise _FieldError(f"{name} was sent twice. Send it once.", name)
            if isinstance(value, UploadFile) != (name == "input_reference"):
                wanted = "a file" if name == "input_reference" else "text"
                raise _FieldError(f"{name} must be {wanted} in form data.", name)
            given[name] = await value.read() if isinstance(value, UploadFile) else value
        return given


def _number(name: str, value: Any) -> Any:
    """Return the number that a form's text spells; else the value, for the check of its type."""
    if not isinstance(value, str) or name in _TEXT:
        return value
    try:
        return float(value) if name in _NUMBERS else int(value)
    except ValueError:
        return value


def _count_frames(seconds: Any, fps: int) -> int:
    """Return the frames from the first, at 0 s, to the one at that many seconds."""
    try:
        num_frames = round(float(seconds) * fps) + 1
    except (TypeError, ValueError, OverflowError):
        num_frames = 0
    if num_frames < 1 or isinstance(seconds, bool):
        message = f"seconds must be a number, 0 or more, got {seconds!r}. Pass seconds='4'."
        raise _FieldError(message, "seconds")
    return num_frames


def _check_alone(name: str, sampling: Mapping[str, Any], others: tuple[str, ...]) -> None:
    for other in others:
        if sampling.get(other) is not None:
            raise _FieldError(f"{name} and {other} say the same. Pass one of them.", name)


def _refuse(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    name: str | None = None,
    code: str | None = None,
) -> JSONResponse:
    error = {"message": message, "type": kind, "param": name, "code": code}
    return JSONResponse({"error": error}, status)


async def _answer_status(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = "not_found" if error.status_code == 404 else None
    return _refuse(error.status_code, error.detail, code=code)
