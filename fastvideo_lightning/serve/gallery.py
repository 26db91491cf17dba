"""What a visitor made so far: each video with its settings, and a button that fills them in."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from jinja2 import Environment

from fastvideo_lightning.serve.form import FIELDS
from fastvideo_lightning.serve.jobs import Job, JobState

MAX_SHOWN = 24
# A button says which job it is about; the page's own click event carries it to `settings_of`.
ON_LOAD = """element.addEventListener('click', event => {
  const button = event.target.closest('button[data-job]');
  if (button) trigger('click', {job: button.dataset.job});
});"""
_TEMPLATE = """<h2>Made so far</h2><ul class="made">{% for one in made %}<li>
<video src="{{ one.address }}" aria-label="{{ one.prompt }}" muted loop controls playsinline
 preload="metadata"></video>
<p class="asked">{{ one.prompt }}</p><p class="detail">{{ one.settings }}</p>
<button type="button" data-job="{{ one.id }}">Again with these</button></li>{% endfor %}</ul>"""


def show_gallery(jobs: Sequence[Job]) -> str:
    """Return the videos of finished jobs as HTML; empty where there is none."""
    made = [
        {
            "id": job.id,
            "address": f"gradio_api/file={quote(str(job.look().files[0].resolve()))}",
            "prompt": job.request.prompt,
            "settings": _settings(job),
        }
        for job in jobs
        if job.look().files
    ]
    return Environment(autoescape=True).from_string(_TEMPLATE).render(made=made) if made else ""


def remember(known: object, job: Job | None) -> list[str]:
    """Return the ids of a visitor's jobs, the newest first, with this one if it made a video."""
    ids = [one for one in known if isinstance(one, str)] if isinstance(known, list) else []
    if job is not None and job.look().state is JobState.DONE:
        ids = [job.id, *(one for one in ids if one != job.id)]
    return ids[:MAX_SHOWN]


def settings_of(job: Job) -> list[Any]:
    """Return what the form's fields were for a job, in the order of `FIELDS`."""
    request = job.request
    budget = request.budget_gib
    values = {
        **request.params.given(),
        "prompt": request.prompt,
        "gpu_memory_budget": f"{budget:g}" if isinstance(budget, float) else budget,
    }
    return [values.get(name) for name in FIELDS]


def _settings(job: Job) -> str:
    params, budget = job.request.params, job.request.budget_gib
    size = f"{params.width}x{params.height}, {params.num_frames} frames at {params.fps} fps"
    text = f"{size}, {params.num_inference_steps} steps, guidance {params.guidance_scale}"
    text += f", seed {params.seed}"
    return text if budget is None else f"{text}, budget {budget} GiB"
