"""The page itself, made of Gradio's parts."""

import secrets
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from fastvideo_lightning.serve.form import FIELDS, LABELS
from fastvideo_lightning.serve.gallery import ON_LOAD
from fastvideo_lightning.serve.session import Session, View
from fastvideo_lightning.serve.studio import Studio
from fastvideo_lightning.serve.view import show_idle

_SHAPES = ("a red circle moves right", "a blue square moves up on a white background")
_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def make_page(studio: Studio) -> gr.Blocks:
    """Build the page of a studio."""
    page: gr.Blocks
    with gr.Blocks(title="FastVideo Lightning", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(f"# FastVideo Lightning\n{studio.describe()}", elem_id="title")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=3, elem_id="shown"):
                preview = gr.HTML(elem_id="preview")
                video = gr.Video(
                    label="Video",
                    interactive=False,
                    autoplay=True,
                    loop=True,
                    height="min(58vh, 62vw, 36rem)",
                    buttons=["download"],
                    elem_id="video",
                )
                status = gr.HTML(show_idle(), elem_id="status")
            with gr.Column(scale=2, elem_id="form"):
                fields, make, stop = _make_form(studio)
        # In the browser, so that a page that is opened again finds its video.
        last_id = gr.BrowserState(None, storage_key="fastvideo-lightning-job")
        gallery = gr.HTML(elem_id="gallery", js_on_load=ON_LOAD)
        plan, report = gr.HTML(elem_id="plan"), gr.HTML(elem_id="report")
        shown = [last_id, gr.State(), status, make, stop, video, report, preview]
        ends = _wire(page, Session(studio), fields, shown)
        _show_gallery(Session(studio), ends, shown[1], fields, gallery)
        _show_plan(page, make, Session(studio), fields, plan)
    return page


def _wire(page: gr.Blocks, session: Session, fields: list[Any], shown: list[Any]) -> list[Any]:
    """Say which function answers which click; return what ends when a video has."""
    last_id, job_id, _, make, stop, *_ = shown

    async def on_make(*values: Any) -> AsyncIterator[list[Any]]:
        async for view in session.make(values):
            yield _update(view)

    async def on_load(known: str | None) -> AsyncIterator[list[Any]]:
        async for view in session.resume(known):
            yield _update(view)

    made = make.click(on_make, fields, shown, concurrency_limit=None, **_QUIET)
    resumed = page.load(on_load, last_id, shown, concurrency_limit=None, **_QUIET)
    stop.click(session.cancel, job_id, None, concurrency_limit=None, **_QUIET)
    return [made, resumed]


def _show_gallery(
    session: Session, ends: list[Any], job_id: Any, fields: list[Any], gallery: gr.HTML
) -> None:
    """Show what this browser has made, and fill the form with what one of them was made with."""
    known = gr.BrowserState([], storage_key="fastvideo-lightning-made")

    def on_again(event: gr.EventData) -> list[Any]:
        values = session.settings(event._data.get("job"))
        return [gr.skip()] * len(fields) if values is None else values

    for end in ends:
        end.then(session.gallery, [known, job_id], [known, gallery], **_QUIET)
    again = gallery.click(on_again, None, fields, concurrency_limit=None, **_QUIET)
    again.then(None, js="() => { document.querySelector('#prompt textarea').focus(); }")


def _show_plan(
    page: gr.Blocks, make: gr.Button, session: Session, fields: list[Any], plan: gr.HTML
) -> None:
    """Show what goes where for the sizes in the form: when one is changed, and of what is made."""

    async def on_change(*values: Any) -> str:
        return await session.plan(values)

    sizes = [*fields[4:10], fields[-1]]  # sizes, steps, guidance, budget
    leaves = [event for field in sizes for event in (field.blur, field.submit)]
    # One after the other, and the last one always: of several at once the plan of an earlier
    # form, which takes longer than a refusal, would come last and stay.
    gr.on(
        [page.load, make.click, *leaves],
        on_change,
        fields,
        plan,
        trigger_mode="always_last",
        **_QUIET,
    )


def _update(view: View) -> list[Any]:
    """Return what changes: the job's id in browser and session, and what is shown."""
    files = [str(file.resolve()) for file in view.files]
    if files:
        gr.set_static_paths(files)  # from now on they can be read through the page
    return [
        view.job_id,
        view.job_id,
        view.status,
        gr.Button(interactive=not view.is_open),
        gr.Button(interactive=view.is_open),
        gr.Video(files[0] if files else None, visible=not view.preview),
        view.report,
        view.preview,
    ]


def _make_form(studio: Studio) -> tuple[list[Any], gr.Button, gr.Button]:
    """Lay out the form; return its fields in the order of `FIELDS`, and the two buttons."""
    fields: dict[str, Any] = {
        "prompt": gr.Textbox(
            label=LABELS["prompt"],
            placeholder="What the video shows",
            value=_SHAPES[0] if studio.is_tiny_shapes else None,
            lines=2,
            max_length=studio.limits.max_prompt_characters,
            elem_id="prompt",
        )
    }
    with gr.Row(elem_id="buttons"):
        make = gr.Button("Make video", variant="primary", min_width=90, elem_id="make")
        stop = gr.Button("Cancel", interactive=False, min_width=90, elem_id="cancel")
    if studio.is_tiny_shapes:
        gr.Examples([[text] for text in _SHAPES], fields["prompt"], label="For example")
    _make_settings(studio, fields)
    return [fields[name] for name in FIELDS], make, stop


def _make_settings(studio: Studio, fields: dict[str, Any]) -> None:
    """Lay out what is below the buttons: images, sizes, steps, and what few people change."""
    images = studio.images
    with gr.Row(visible=images.first):
        for name, is_wanted in (("image_path", images.first), ("last_image_path", images.last)):
            fields[name] = gr.Image(
                label=LABELS[name],
                type="filepath",
                sources=["upload", "clipboard"],
                visible=is_wanted,
                elem_id=name,
            )
    with gr.Row(elem_id="sizes"):
        for name in ("width", "height", "num_frames"):
            fields[name] = _make_number(studio, name)
    with gr.Row(elem_id="steps"):
        for name in ("num_inference_steps", "guidance_scale", "fps"):
            fields[name] = _make_number(studio, name)
    # No number: a browser shows an empty one as 0, and `auto` is none.
    fields["gpu_memory_budget"] = gr.Textbox(
        label=LABELS["gpu_memory_budget"],
        info=studio.hint("gpu_memory_budget"),
        placeholder="A number, or auto" if studio.has_gpu else "A number",
        max_lines=1,
        elem_id="gpu_memory_budget",
    )
    with gr.Accordion("More", open=False):
        fields["negative_prompt"] = gr.Textbox(
            label=LABELS["negative_prompt"],
            placeholder="What it should not show",
            value=studio.defaults.negative_prompt,
            max_length=studio.limits.max_prompt_characters,
            elem_id="negative_prompt",
        )
        with gr.Row():
            fields["seed"] = _make_number(studio, "seed")
            gr.Button("Another seed").click(
                lambda: secrets.randbelow(2**31),
                None,
                fields["seed"],
                concurrency_limit=None,
                **_QUIET,
            )


def _make_number(studio: Studio, name: str) -> gr.Number:
    return gr.Number(
        label=LABELS[name],
        value=getattr(studio.defaults, name, None),
        info=studio.hint(name),
        min_width=90,
        elem_id=name,
    )
