"""Which placement callbacks the flags or a plan mean for a module, and how they are made anew."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from fastvideo_lightning.callbacks import (
    CPUExecution,
    EncodeAhead,
    LayerwiseOffload,
    MemoryBudget,
    ModelOffload,
    Resident,
)
from fastvideo_lightning.config import OffloadConfig, SamplingParams
from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.modules.acceleration import accelerate
from fastvideo_lightning.plan import BudgetTooSmallError, Plan, make_plan
from fastvideo_lightning.plan.host_tiers import (
    HostTiers,
    check_computes_on_cpu,
    deal_tiers,
    find_host_budget,
    find_moving,
)
from fastvideo_lightning.plan.machine import GIB
from fastvideo_lightning.plan.planner import find_budget, find_machine
from fastvideo_lightning.plan.predict import Prediction
from fastvideo_lightning.plan.sizes import measure_components
from fastvideo_lightning.prompts.dataset import params_of

if TYPE_CHECKING:
    import lightning as L


_log = logging.getLogger(__name__)
_told: set[str] = set()


# What has no effect on a CPU and is no offload flag, and why.
_FOR_A_GPU = {
    "gpu_memory_budget": "there is no GPU memory to keep to it",
    "host_memory_budget": "weights stay in their files, which are mapped",
    "on_oom": "there is no GPU memory to run out of",
    "cuda_graphs": "there is no GPU to repeat a step",
    "pair_guidance": "nothing is copied to a GPU",
    "weight_compression": "nothing is copied to a GPU",
}


def make_placements(
    module: VideoModule, config: OffloadConfig, *, on_gpu: bool, num_processes: int = 1
) -> list[object]:
    """Return one callback for each component, by its role.

    On a CPU there is none: host and device memory are the same, and weights stay where they are.
    Several processes share the denoisers' there as they do beside GPUs.
    """
    streams = config.dit_layerwise_offload and not config.use_fsdp_inference
    if config.shard_transport != "auto" and (num_processes == 1 or not streams):
        _say_once(
            f"shard_transport={config.shard_transport!r} has no effect where not several processes "
            "stream."
        )
    if config.dit_resident_blocks and config.use_fsdp_inference:
        _say_once("dit_resident_blocks has no effect with use_fsdp_inference=True.")
    streams_encoder = bool(config.text_encoder_layerwise_offload and module.text_encoders)
    if config.num_slots != OffloadConfig.num_slots and not (streams or streams_encoder):
        _say_once(f"num_slots={config.num_slots} has no effect where nothing streams.")
    if config.pair_guidance is True and (not streams or num_processes > 1):
        _say_once("pair_guidance has no effect where not one process alone streams the denoiser.")
    if config.weight_compression != "none" and not (streams or streams_encoder):
        _say_once("weight_compression has no effect where nothing streams.")
    if not on_gpu:
        _say_what_needs_a_gpu(config)
    memory = _kind(config)
    tiers = _host_tiers(module, config, num_processes) if on_gpu else {}
    _say_tiers(tiers, config)
    if not on_gpu and num_processes > 1 and (streams or config.guidance_parallel > 1):
        how = "stream the denoiser from memory that they share" if streams else "hold it each"
        _say_once(
            f"Running on the CPU in {num_processes} processes: they {how}; the other offload flags "
            "have no effect."
        )
        shared = replace(config, weight_compression="none")  # coded, each would hold its own
        return [
            _place_denoiser(fqn, module, shared, memory, num_processes) for fqn in module.denoisers
        ]
    if not on_gpu and config.use_fsdp_inference:
        _say_once(
            "Running on the CPU: FSDP shards the denoiser in host memory; the other offload flags "
            "have no effect."
        )
        return []
    if not on_gpu:
        _say_once(
            "Running on the CPU: weights stay in host memory and compute there, so the offload "
            "flags have no effect."
        )
        return []
    if config.dit_cpu_offload and not config.use_fsdp_inference:
        _say_once("dit_cpu_offload=True has no effect without use_fsdp_inference=True.")
    placements: list[object] = []
    for fqn in module.denoisers if not config.use_fsdp_inference else ():
        of_blocks = tiers[fqn].host_memory(memory) if fqn in tiers else memory
        placements.append(_place_denoiser(fqn, module, config, of_blocks, num_processes))
    encoders = [
        _place_text_encoder(fqn, config, tiers[fqn].host_memory(memory) if fqn in tiers else memory)
        for fqn in module.text_encoders
    ]
    placements += encoders
    for fqns, offload in (
        (module.image_encoders, config.image_encoder_cpu_offload),
        (module.vaes, config.vae_cpu_offload),
    ):
        placements += [
            ModelOffload(f, host_memory=_kind_of(tiers.get(f), memory)) if offload else Resident(f)
            for f in fqns
        ]
    if encoders and all(isinstance(encoder, CPUExecution) for encoder in encoders):
        placements.append(EncodeAhead())
    return placements


def _kind(config: OffloadConfig) -> str:
    return config.host_memory if config.pin_cpu_memory else "pageable"


def check_host(
    module: VideoModule, config: OffloadConfig, *, on_gpu: bool, num_processes: int = 1
) -> None:
    """Check before a weight is read that this machine's memory can do with the model.

    Raises:
        HostBudgetTooSmallError: If it cannot; with the figures, and what would do.
    """
    if not on_gpu:
        check_computes_on_cpu(module)
    elif config.gpu_memory_budget is None:  # else a plan decides what moves
        _host_tiers(module, config, num_processes)


def _host_tiers(
    module: VideoModule, config: OffloadConfig, num_processes: int
) -> dict[str, HostTiers]:
    """Where the weights that move wait, for what the host has; empty where it is not limited."""
    # Processes of a node hold weights once between them: what is free is not one's alone.
    is_bounded = num_processes == 1 or config.host_memory_budget is not None
    if _kind(config) != "auto" or not is_bounded:
        return {}
    sizes, takes_turns = measure_components(module), module.denoisers_take_turns
    moving = find_moving(sizes, config, takes_turns=takes_turns)
    return deal_tiers(moving, find_host_budget(config))


def _say_tiers(tiers: Mapping[str, HostTiers], config: OffloadConfig) -> None:
    """One line on what waits where and why, where something is read on its way."""
    read = {fqn: each for fqn, each in tiers.items() if each.read_bytes}
    if not read:
        return
    budget, machine = find_host_budget(config), find_machine()
    why = "host_memory_budget" if budget.is_asked else "what is free"
    parts = [
        f"of {fqn} {each}" + (f" ({each.read_s(machine):.2g} s a call)" if machine else "")
        for fqn, each in read.items()
    ]
    _log.info(
        "Host memory: %s, to hold at most %.3g GiB (%s).",
        "; ".join(parts),
        budget.held_bytes / GIB,
        why,
    )


def _kind_of(tiers: HostTiers | None, memory: str) -> str:
    """The kind of host memory of a component that comes in whole."""
    if tiers is None or tiers.held:
        return memory
    return "courier" if tiers.cached else "disk"


def _place_denoiser(
    fqn: str,
    module: VideoModule,
    config: OffloadConfig,
    memory: str | Mapping[str, int],
    num_processes: int,
) -> object:
    if not config.dit_layerwise_offload:
        if config.dit_resident_blocks:
            _say_once(
                "dit_resident_blocks has no effect without dit_layerwise_offload=True: all blocks "
                "are resident."
            )
        return Resident(
            fqn,
            cuda_graphs=config.cuda_graphs,
            guidance_parallel=config.guidance_parallel,
            context_parallel=config.context_parallel,
        )
    # Where processes bring blocks together, one that skips would leave the others waiting.
    is_apart = num_processes == 1 or config.shard_transport == "local"
    return LayerwiseOffload(
        fqn,
        num_slots=config.num_slots,
        resident_blocks=config.dit_resident_blocks,
        share_residents=module.denoisers_take_turns and config.dit_resident_blocks > 0,
        host_memory=memory,
        shard_transport=config.shard_transport,
        skippable=config.cache is not None and is_apart,
        cuda_graphs=config.cuda_graphs,
        weight_compression=config.weight_compression,
        pair_guidance=config.pair_guidance is True and num_processes == 1,
        guidance_parallel=config.guidance_parallel,
        context_parallel=config.context_parallel,
    )


def _place_text_encoder(fqn: str, config: OffloadConfig, memory: str | Mapping[str, int]) -> object:
    if config.text_encoder_layerwise_offload:
        if config.text_encoder_cpu_offload:
            _say_once(
                "text_encoder_cpu_offload=True has no effect with "
                "text_encoder_layerwise_offload=True, which streams the encoder instead."
            )
        return LayerwiseOffload(
            fqn,
            num_slots=config.num_slots,
            host_memory=memory,
            shard_transport=config.shard_transport,
            weight_compression=config.weight_compression,
        )
    return CPUExecution(fqn) if config.text_encoder_cpu_offload else Resident(fqn)


def _say_what_needs_a_gpu(config: OffloadConfig) -> None:
    defaults = OffloadConfig()
    for name, reason in _FOR_A_GPU.items():
        value = getattr(config, name)
        if value != getattr(defaults, name):
            _say_once(f"{name}={value!r} has no effect on the CPU: {reason}.")


def _say_once(message: str) -> None:
    if message not in _told:
        _told.add(message)
        _log.info(message)


_GIB = 1 << 30
# Placing anew takes seconds; it is worth it where a video would take so many times as long.
_WORTH_IT = 1.25


class ModelPlacement:
    """Says where the weights are and puts them elsewhere when a video asks for it.

    Args:
        module: The model.
        given: The user's flags; with a budget, those that were passed are kept.
        on_gpu: Whether it runs on a GPU; elsewhere nothing is placed and nothing planned.
        num_processes: Ranks.

    Raises:
        ValueError: If several ranks are to replan, or the host cannot do with the model.

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
        check_host(module, given, on_gpu=on_gpu, num_processes=num_processes)
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
        self.config = self._settle_pairs(fabric, params)
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
        if not items:
            return
        largest = max((params_of(item) for item in items), key=self._num_pixels)
        if self.given.gpu_memory_budget is None:
            config = self._settle_pairs(fabric, largest)
            if config != self.config:
                self.replace(fabric, config)
            return
        plan = self.plan_for(largest)
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
        # a cache has to be around what places the weights, and not inside of it
        self.disable_acceleration()
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
        self.disable_acceleration()
        self._turn_off = accelerate(self.module, self.config)

    def disable_acceleration(self) -> None:
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

    def _settle_pairs(self, fabric: "L.Fabric", params: SamplingParams | None) -> OffloadConfig:
        """The flags in force, and whether `pair_guidance="auto"` is on for a video.

        Without one it is for what the model makes by default, unless that cannot be made.
        """
        given = self.given
        has_plan = given.gpu_memory_budget is not None or given.use_fsdp_inference
        if given.pair_guidance != "auto" or has_plan or not self._on_gpu:
            return self.config
        is_on: bool | str = False
        try:
            plan = make_plan(self.module, params, flags=given, num_gpus=self._num_processes)
            is_on = plan.config.pair_guidance
        except ValueError:
            if params is not None:
                raise
        return replace(self.config, pair_guidance=fabric.broadcast(is_on))

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
            _log.info(
                "Planned for %.4g GiB: %s",
                self.plan.budget_bytes / _GIB,
                _changed_flags(self.config),
            )


def _changed_flags(config: OffloadConfig) -> str:
    """The flags that differ from the defaults."""
    default = OffloadConfig()
    names = [name for name in OffloadConfig.__dataclass_fields__ if name != "gpu_memory_budget"]
    changed = [name for name in names if getattr(config, name) != getattr(default, name)]
    return ", ".join(f"{name}={getattr(config, name)}" for name in changed) or "the defaults"
