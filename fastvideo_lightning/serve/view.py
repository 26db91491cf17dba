"""What the page shows of a job and of what was wrong, as HTML; nothing in it is taken as markup."""

from html import escape
from pathlib import Path
from urllib.parse import quote

from fastvideo_lightning.serve.jobs import JobState, Progress

_STAGES = ("encode", "denoise", "decode", "write")
_DOING = {
    "": "Starting",
    "load": "Placing the weights",
    "encode": "Reading the prompt",
    "denoise": "Denoising",
    "decode": "Turning latents into frames",
    "write": "Writing the video",
}


def show_idle() -> str:
    """Return the box before anything was asked for."""
    return _box("idle", "Nothing asked for yet", "Describe a video and press Make video.")


def show_error(message: str) -> str:
    """Return the box of a request that was refused: what is wrong, then what to enter."""
    return _box("failed", "This cannot be made", message)


def show_plan(inside: str) -> str:
    """Return HTML of the plan under a heading that opens and closes it."""
    return f"<details open><summary>Plan</summary>{inside}</details>"


def show_preview(address: str) -> str:
    """Return the rough view of a video that is being made; nothing where there is none."""
    if not address:
        return ""
    alt = "A rough view of the video that is being made"
    return f'<img src="{address}" alt="{alt}"><p>Preview, sharper with every step</p>'


def show_refusal(message: str) -> str:
    """Return the box that stands in place of a plan."""
    return _box("failed", "There is no plan for this", message)


def show_report(path: Path) -> str:
    """Return a report in a frame of its own, where nothing of it runs, and a link to its file.

    Raises:
        OSError: If it cannot be read.
    """
    page = escape(path.read_text(encoding="utf-8"))
    link = f"gradio_api/file={quote(str(path.resolve()))}"
    return (
        '<details open><summary>Report</summary><iframe title="Report" sandbox loading="lazy" '
        f'srcdoc="{page}"></iframe><p><a href="{link}" download="{escape(path.name)}">'
        f"Keep {escape(path.name)}</a>: one page that opens offline.</p></details>"
    )


def show_progress(progress: Progress) -> str:
    """Return the box of a job."""
    match progress.state:
        case JobState.QUEUED if progress.place:
            ahead = progress.place - 1
            waits = "waits" if ahead == 1 else "wait"
            others = f"{ahead} {waits} before it" if ahead else "One video is being made now"
            return _box("queued", f"Waiting, number {progress.place} in the queue", others)
        case JobState.QUEUED | JobState.RUNNING:
            return _box("running", _doing(progress), _pace(progress), _bar(progress))
        case JobState.DONE:
            return _box("done", "Done", progress.message)
        case JobState.CANCELLED:
            return _box("cancelled", "Cancelled", progress.message)
        case JobState.STOPPED:
            return _box("stopped", "Stopped", progress.message)
        case JobState.FAILED:
            return _box("failed", "This video could not be made", progress.message)


def _box(kind: str, headline: str, detail: str, more: str = "") -> str:
    role = "alert" if kind == "failed" else "status"
    return (
        f'<div class="status {kind}" role="{role}"><p><strong>{escape(headline)}</strong></p>'
        f'{more}<p class="detail">{escape(detail)}</p></div>'
    )


def _doing(progress: Progress) -> str:
    text = _DOING[progress.stage]
    if progress.stage == "denoise" and progress.num_steps:
        text += f", step {min(progress.step + 1, progress.num_steps)} of {progress.num_steps}"
    return text


def _pace(progress: Progress) -> str:
    parts = [f"{_seconds(progress.elapsed_s)} so far"]
    if progress.step_s:
        rate = 1 / progress.step_s
        parts.append(f"{rate:.2f} steps/s" if rate >= 1 else f"{progress.step_s:.2f} s/step")
        if progress.stage == "denoise":
            left = (progress.num_steps - progress.step) * progress.step_s
            parts.append(f"about {_seconds(left)} of denoising left")
    return " · ".join(parts)


def _bar(progress: Progress) -> str:
    percent = round(100 * progress.step / progress.num_steps) if progress.num_steps else 0
    marks = []
    now = _STAGES.index(progress.stage) if progress.stage in _STAGES else -1
    for place, stage in enumerate(_STAGES):
        mark = "past" if place < now else "now" if place == now else ""
        marks.append(f'<li class="{mark}">{stage}</li>')
    return (
        f'<div class="bar" role="progressbar" aria-label="Denoising steps" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}"><div style="width:{percent}%"></div></div>'
        f"<ol>{''.join(marks)}</ol>"
    )


def _seconds(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
