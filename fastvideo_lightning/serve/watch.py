"""A callback that tells a job how far its video is, and stops it if nobody wants it any more."""

from fastvideo_lightning.serve.jobs import Job


class JobWatch:
    """Passes the moments of the predict loop on to the job that is being made."""

    def __init__(self) -> None:
        self.job: Job | None = None

    def on_predict_batch_start(self) -> None:
        """Encoding begins."""
        self._reach("encode")

    def on_denoise_step_start(self, step: int, num_steps: int) -> None:
        """A step begins; a job that is not wanted any more stops here."""
        self._reach("denoise", step, num_steps)

    def on_denoise_step_end(self, step: int, num_steps: int) -> None:
        """A step is done; after the last one comes decoding."""
        self._reach("decode" if step + 1 == num_steps else "denoise", step + 1, num_steps)

    def on_predict_batch_end(self) -> None:
        """The frames are there and will be written."""
        self._reach("write")

    def _reach(self, stage: str, step: int = 0, num_steps: int = 0) -> None:
        if self.job is not None:
            self.job.reach(stage, step, num_steps)
