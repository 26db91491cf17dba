"""The option `--report`: a callback that watches the run, and the plan to hold it against."""

from typing import TYPE_CHECKING, Any

from fastvideo_lightning.config import OffloadConfig, SamplingParams

if TYPE_CHECKING:
    from fastvideo_lightning.modules import VideoModule


def watch_run(
    path: str | None,
    module: "VideoModule",
    config: OffloadConfig,
    params: SamplingParams | None,
    *,
    on_gpu: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Return what the generator takes to be watched; nothing where no report is asked for.

    Args:
        path: Of the report.
        module: The model.
        config: The user's flags.
        params: The video; None for a batch, which has no plan of one video.
        on_gpu: Whether there is device memory to plan.
        quiet: Whether to leave the five lines out.

    Raises:
        ValueError, OSError: If the file cannot be written.
    """
    if path is None:
        return {}
    from fastvideo_lightning.callbacks import MemoryReport

    if params is None or not on_gpu or config.use_fsdp_inference:
        return {"callbacks": [MemoryReport(path, quiet=quiet)]}
    from fastvideo_lightning.plan import make_plan

    plan = make_plan(module, params, flags=config)
    link = None if plan.machine is None else plan.machine.link_bytes_per_s
    report = MemoryReport(path, plan=plan.to_dict(), link_bytes_per_s=link, quiet=quiet)
    return {"callbacks": [report]}
