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
CSS = """
.status { padding: .75rem 1rem; border-radius: .5rem; border: 1px solid var(--border-color-primary);
  border-left-width: .4rem; background: var(--background-fill-secondary); }
.status p { margin: 0; }
.status .detail { opacity: .8; font-size: .9em; overflow-wrap: anywhere; }
.status.running { border-left-color: #2f6feb; }
.status.queued, .status.cancelled, .status.stopped, .status.idle { border-left-color: #8a8f98; }
.status.done { border-left-color: #2da44e; }
.status.failed { border-left-color: #d1242f; }
.status .bar { height: .6rem; margin: .6rem 0 .3rem; border-radius: .3rem; overflow: hidden;
  background: var(--border-color-primary); }
.status .bar div { height: 100%; background: #2f6feb; transition: width .3s; }
.status ol { display: flex; gap: 1rem; padding: 0; margin: .3rem 0 0; list-style: none;
  font-size: .85em; }
.status ol li { opacity: .5; }
.status ol li.now { opacity: 1; font-weight: 600; }
.status ol li.past { opacity: .8; }
.status ol li.past::after { content: " \\2713"; }
#status { padding: 0; }
/* In view beside the buttons, on a low screen too: `hidden` would keep it from sticking. */
.gradio-container { overflow: clip !important; }
@media (min-width: 48rem) { #shown { position: sticky; top: .5rem; align-self: flex-start; } }
#plan summary, #report summary { cursor: pointer; font-weight: 600; }
#plan pre { overflow-x: auto; font-size: .8rem; line-height: 1.35; margin: .5rem 0; }
#report iframe { width: 100%; height: 34rem; border: 1px solid var(--border-color-primary);
  border-radius: .5rem; background: #fff; margin: .5rem 0; }
#report p { margin: 0; font-size: .9em; overflow-wrap: anywhere; }
footer { display: none !important; }
"""


def show_idle() -> str:
    """Return the box before anything was asked for."""
    return _box("idle", "Nothing asked for yet", "Describe a video and press Make video.")


def show_error(message: str) -> str:
    """Return the box of a request that was refused: what is wrong, then what to enter."""
    return _box("failed", "This cannot be made", message)


def show_plan(inside: str) -> str:
    """Return HTML of the plan under a heading that opens and closes it."""
    return f"<details open><summary>Plan</summary>{inside}</details>"


def show_text(text: str) -> str:
    """Return lines of text as they stand."""
    return f"<pre>{escape(text)}</pre>"


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
