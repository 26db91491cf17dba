"""Placing: the placement callbacks of a generator, made by flags or by a plan, and made anew."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from fastvideo_lightning.callbacks import MemoryBudget
from fastvideo_lightning.config import OffloadConfig, SamplingParams
from fastvideo_lightning.generator.placements import make_placements
from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.modules.acceleration import accelerate
from fastvideo_lightning.plan import BudgetTooSmallError, Plan, make_plan
from fastvideo_lightning.plan.planner import find_budget
from fastvideo_lightning.plan.predict import Prediction

if TYPE_CHECKING:
    import lightning as L

_log = logging.getLogger(__name__)
_GIB = 1 << 30
# Placing anew takes seconds; it is worth it where a video would take so many times as long.
_WORTH_IT = 1.25


class Placing:
    """Says where the weights are and puts them elsewhere when a video asks for it.

    Args:
        module: The model.
        given: The user's flags; with a budget, those that were passed are kept.
        on_gpu: Whether it runs on a GPU; elsewhere nothing is placed and nothing planned.
        num_processes: Ranks.

    Raises:
        ValueError: If several ranks are to replan.

    Attributes:
        module: The model; gone after `close`.
        config: The flags in force.
        plan: What they were chosen by, or None.
    """

    def __init__(
        self, module: VideoModule, given: OffloadConfig, *, on_gpu: bool, num_processes: int
    ) -> None:
        if given.on_oom == "replan" and num_processes > 1:
            raise ValueError(
                f"on_oom='replan' needs one process, got num_gpus={num_processes}: the others "
                "would wait for the one that begins again. Pass on_oom='raise'."
            )
        self.config = given
        self.plan: Plan | None = None
        self.given = given
        self.module = module
        self._on_gpu = on_gpu
        self._num_processes = num_processes
        self._callbacks: list[object] = []
        self._budget_gib: float | None = None  # what `auto` means, once several ranks have agreed
        self._ceiling_bytes: int | None = None
        self._is_whole = True  # False where memory ran out while weights were placed
        self._turn_off: Callable[[], None] = lambda: None

    def plan_for(self, params: SamplingParams) -> Plan | None:
        """Plan a video; None without a budget and where there is no GPU.

        Raises:
            BudgetTooSmallError: If it does not fit.
        """
        if self.given.gpu_memory_budget is None or not self._on_gpu:
            return None
        plan = make_plan(
            self.module,
            params,
            flags=self.given,
            budget_gib=self._budget_gib,
            num_gpus=self._num_processes,
        )
        if self._ceiling_bytes is not None and plan.reserved_bytes > self._ceiling_bytes:
            ceiling_gib = self._ceiling_bytes / _GIB
            with suppress(BudgetTooSmallError):
                return make_plan(self.module, params, flags=self.given, budget_gib=ceiling_gib)
        return plan

    def begin(self, fabric: "L.Fabric", params: SamplingParams | None, *, at: int) -> None:
        """Put the callbacks among Fabric's, which attaches them when it sets the module up.

        Args:
            fabric: Launched, and not set up yet.
            params: The first video; None for one that the model makes by default.
            at: Where among Fabric's callbacks.
        """
        self._agree(fabric)
        try:
            self.plan = self.plan_for(params or SamplingParams())
        except ValueError as error:
            if params is not None:
                raise
            # The video that the model makes by default is too large; a smaller may be asked for.
            if isinstance(error, BudgetTooSmallError):
                self.config = error.smallest.config
        if self.plan is not None:
            self.config = self.plan.config
        self._make(fabric)
        fabric._callbacks[at:at] = self._callbacks

    def adapt(self, fabric: "L.Fabric", items: Sequence[Mapping[str, Any]]) -> None:
        """Place anew where a video does not fit or would take much longer than it has to.

        Args:
            fabric: Set up.
            items: Prompts with their sampling fields; the largest video decides.

        Raises:
            BudgetTooSmallError: If it cannot fit.
        """
        if not self._is_whole:
            self.replace(fabric, self.config)
        if self.given.gpu_memory_budget is None or not items:
            return
        plan = self.plan_for(max((params_of(item) for item in items), key=self._num_pixels))
        if plan is None:
            return
        assert plan.budget_bytes is not None
        there, best = plan.under(self.config), plan.prediction
        fits = there.reserved_bytes <= plan.budget_bytes
        is_slow = there.time_s > _WORTH_IT * best.time_s
        is_first, self.plan = self.plan is None, plan
        if is_first or not fits or is_slow:
            self.replace(fabric, plan.config)

    def tighten(self, fabric: "L.Fabric", prediction: Prediction) -> None:
        """Place for a plan that takes less, and let later plans take no more than it does."""
        self._ceiling_bytes = prediction.reserved_bytes
        self.replace(fabric, prediction.config)

    def replace(self, fabric: "L.Fabric", config: OffloadConfig) -> None:
        """Take the weights from where they are and put them where other flags say."""
        self._is_whole = False
        self.slow_down()  # a cache has to be around what places the weights, and not inside of it
        self.exchange(fabric, config)
        for callback in self._callbacks:
            hook = getattr(callback, "on_after_setup", None)
            if hook is not None:
                moment = {"fabric": fabric, "module": self.module}
                hook(**fabric._filter_kwargs_for_callback(hook, moment))
        self.accelerate()
        self._is_whole = True

    def exchange(self, fabric: "L.Fabric", config: OffloadConfig) -> None:
        """Put other callbacks among Fabric's in place of those there, which let go of everything.

        They place nothing until Fabric sets the module up, or `replace` has them do it.
        """
        at = fabric._callbacks.index(self._callbacks[0]) if self._callbacks else 0
        self._end()
        del fabric._callbacks[at : at + len(self._callbacks)]
        self.config = config
        self._make(fabric)
        fabric._callbacks[at:at] = self._callbacks

    def accelerate(self) -> None:
        """Turn on the flags' cache, backend, tiling and slicing; the weights are placed."""
        self.slow_down()
        self._turn_off = accelerate(self.module, self.config)

    def slow_down(self) -> None:
        """Turn them off again; a second call does nothing."""
        turn_off, self._turn_off = self._turn_off, lambda: None
        turn_off()

    def close(self) -> None:
        """Let go of the model, which Fabric's teardown has taken off the device."""
        self._callbacks.clear()
        del self.module
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _end(self) -> None:
        for callback in self._callbacks:
            callback.teardown()  # type: ignore[attr-defined]

    def _agree(self, fabric: "L.Fabric") -> None:
        """Plan for what is free on the fullest GPU: ranks must place alike, and at the same time.

        Each would otherwise find another amount, and place anew for another video than the others.
        """
        is_auto = self.given.gpu_memory_budget == "auto"
        if is_auto and self._on_gpu and self._num_processes > 1:
            free = find_budget("auto", None, is_here=True)
            assert free is not None
            mine = torch.tensor(float(free), dtype=torch.float64, device=fabric.device)
            least = fabric.all_reduce(mine, reduce_op="min")
            assert isinstance(least, torch.Tensor)
            self._budget_gib = least.item() / _GIB

    def _num_pixels(self, params: SamplingParams) -> int:
        filled = self.module.fill_sampling(params)
        return prod(filter(None, (filled.height, filled.width, filled.num_frames)))

    def _make(self, fabric: "L.Fabric") -> None:
        # Ranks must agree, and may have found different amounts of free memory.
        self.config = fabric.broadcast(self.config)
        self._callbacks = make_placements(
            self.module, self.config, on_gpu=self._on_gpu, num_processes=self._num_processes
        )
        if self.plan is not None and self.plan.budget_bytes is not None:
            self._callbacks.append(MemoryBudget(self.plan.budget_bytes / _GIB))
            _log.info("Planned for %.4g GiB: %s", self.plan.budget_bytes / _GIB, _said(self.config))


def params_of(item: Mapping[str, Any]) -> SamplingParams:
    """The sampling parameters among an item of a `PromptDataset`."""
    sampling = {k: v for k, v in item.items() if k not in ("index", "prompt")}
    return SamplingParams.from_mapping(sampling)


def _said(config: OffloadConfig) -> str:
    """The flags that differ from the defaults."""
    default = OffloadConfig()
    names = [name for name in OffloadConfig.__dataclass_fields__ if name != "gpu_memory_budget"]
    changed = [name for name in names if getattr(config, name) != getattr(default, name)]
    return ", ".join(f"{name}={getattr(config, name)}" for name in changed) or "the defaults"
