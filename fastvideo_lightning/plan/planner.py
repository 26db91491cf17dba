"""make_plan: from a model, a video's size and a budget to a plan."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

import torch

from fastvideo_lightning.checkpoint.hub import find_published, headers_folder
from fastvideo_lightning.checkpoint.parts import find_parts
from fastvideo_lightning.checkpoint.quantization import QUANTIZATIONS
from fastvideo_lightning.config import OffloadConfig, SamplingParams
from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.plan.choose import (
    BudgetTooSmallError,
    check_fits_any,
    choose,
    find_smallest,
    settle_pairs,
)
from fastvideo_lightning.plan.cost import Request
from fastvideo_lightning.plan.host_memory import FreeMemory, find_all_memory
from fastvideo_lightning.plan.host_tiers import HostBudgetTooSmallError
from fastvideo_lightning.plan.machine import GIB, Machine, find_card, match_card
from fastvideo_lightning.plan.plan import Plan
from fastvideo_lightning.plan.probe import load_probe
from fastvideo_lightning.plan.sizes import frames_per_latent
from fastvideo_lightning.plan.workload import Workload

# Left alone on a card: its driver's context and what else is drawn with it.
_CONTEXT_BYTES = GIB
_AUTO_SHARE = 0.97


def make_plan(
    model: VideoModule | str | PathLike[str],
    params: SamplingParams | None = None,
    *,
    budget_gib: float | str | None = None,
    card: str | None = None,
    flags: OffloadConfig | Mapping[str, Any] | None = None,
    machine: Machine | None = None,
    name: str | None = None,
    dtype: str = "auto",
    num_gpus: int = 1,
    host_memory_gib: float | None = None,
    disk_gb_per_s: float | None = None,
    link_gb_per_s: float | None = None,
    loading: Mapping[str, Any] | None = None,
) -> Plan:
    """Plan what goes where; reads headers and no weight, and needs no GPU.

    Args:
        model: A module, a folder in diffusers' layout, a hub id or `tiny-shapes`.
        params: The video; what is left out is the model's default.
        budget_gib: GiB that may be reserved on the device, or `auto`: what is free, less a margin.
            None predicts the flags as they are.
        card: Name of a card such as `RTX 4090`, which need not be there.
        flags: Flags that the plan keeps.
        machine: The hardware, in place of `card` and of what is found here.
        name: What the plan calls the model; by default what was passed, or its pipeline.
        dtype: What a model that is named would be loaded with, as in `VideoModule.from_pretrained`.
        num_gpus: GPUs that share the prompts; the plan is for each of them.
        host_memory_gib: Memory of the host; by default what was measured here.
        disk_gb_per_s: What the disk of the weights reads, in 10^9 bytes per second.
        link_gb_per_s: From host memory to the device, likewise.
        loading: Other arguments of `VideoModule.from_pretrained`, for a model that is named.

    Raises:
        BudgetTooSmallError: If nothing fits; names the smallest possible budget, and the nearest
            smaller video that fits.
        ValueError: If the card is unknown or smaller than the budget, `auto` is asked for where
            there is no GPU, or FSDP.
    """
    given = flags if isinstance(flags, OffloadConfig) else OffloadConfig(**(flags or {}))
    _check_one_gpu(given)
    machine = machine or (find_card(card) if card is not None else find_machine())
    if machine is not None:
        machine = machine.with_host(host_memory_gib, disk_gb_per_s, link_gb_per_s)
    question = _Question(
        params or SamplingParams(),
        given,
        given.gpu_memory_budget if budget_gib is None else budget_gib,
        machine,
        _host_of(machine, host_memory_gib),
        dtype,
        num_gpus,
        is_here=card is None,
    )
    if isinstance(model, VideoModule):
        return question.answer(model, name or type(model.pipeline).__name__)
    return question.answer_for(model, name or str(model), loading or {})


@dataclass(frozen=True)
class _Question:
    """What a plan is asked for, whatever the model."""

    params: SamplingParams
    given: OffloadConfig
    budget_gib: float | str | None
    machine: Machine | None
    host: FreeMemory
    dtype: str
    num_gpus: int
    is_here: bool

    def answer_for(
        self, model: str | PathLike[str], called: str, loading: Mapping[str, Any]
    ) -> Plan:
        """Plan a model by its name."""
        parts = find_parts(model, **_where(loading))
        commit = find_published(parts.pipeline, **_of_files(loading))
        module = open_headers(model, dtype=self.dtype, **loading)
        if commit is None:
            return self.answer(module, called)
        origin = (
            f"The shapes are the published ones, https://huggingface.co/{parts.pipeline}/tree/"
            f"{commit[:8]}: they come with this package, and the hub was not asked."
        )
        is_host_known = self.machine is not None and self.machine.host_memory_bytes is not None
        try:
            plan = self.answer(module, called, origin)
            if not is_host_known or plan.host_bytes <= self.host.budget_bytes:
                return plan
        except (BudgetTooSmallError, HostBudgetTooSmallError):
            if not is_host_known or self.dtype in QUANTIZATIONS:
                raise
        if self.dtype in QUANTIZATIONS:
            return plan
        packed = open_headers(model, dtype=self.dtype, is_packed=True, **loading)
        origin += (
            " Published in fp32, its weights would have to be held in host memory, which is too "
            "small for that. So this is the plan for what "
            f"`fastvideo-lightning pack {parts.pipeline} packed/` writes once: type it first, and "
            "--model packed/ then."
        )
        return self.answer(packed, called, origin)

    def answer(self, module: VideoModule, called: str, origin: str = "") -> Plan:
        """Plan a model whose headers were read."""
        params = module.resolve_sampling(self.params, is_complete=False)
        budget_bytes = find_budget(self.budget_gib, self.machine, is_here=self.is_here)
        quantization = self.dtype if self.dtype in QUANTIZATIONS else None
        subject = Workload.of(module, params, quantization=quantization)
        smallest = find_smallest(subject, self.given, self.machine)
        if budget_bytes is None:
            room = None
            if self.machine is not None:
                room = find_budget("auto", self.machine, is_here=self.is_here)
            chosen = settle_pairs(subject, self.given, self.machine, room)
        else:
            chosen = choose(
                subject,
                self.given,
                self.machine,
                budget_bytes,
                is_auto=self.budget_gib == "auto",
                find_fitting=partial(
                    self._find_fitting, module, params, quantization, budget_bytes
                ),
            )
        return Plan(
            called,
            subject,
            chosen,
            self.machine,
            budget_bytes,
            smallest.reserved_bytes,
            self.num_gpus,
            self.dtype,
            self.host,
            origin,
        )

    def _find_fitting(
        self, module: VideoModule, params: SamplingParams, quantization: str | None, budget: int
    ) -> Mapping[str, int]:
        """The options of the nearest smaller video that some set of flags fits."""

        def has_room(video: Workload) -> bool:
            return find_smallest(video, self.given, self.machine).reserved_bytes <= budget

        if not has_room(Workload.bare(module, quantization=quantization)):
            return {}
        for options in _smaller_videos(module, params):
            video = Workload.of(module, params.merge(**options), quantization=quantization)
            if has_room(video):
                return options
        return {}


def _where(loading: Mapping[str, Any]) -> dict[str, Any]:
    """What says where a model's files lie."""
    return {name: loading[name] for name in ("base", "component", "revision") if name in loading}


def _of_files(loading: Mapping[str, Any]) -> dict[str, Any]:
    """What says which files of the hub's are meant."""
    return {name: loading.get(name) for name in ("revision", "variant")}


def _host_of(machine: Machine | None, asked_gib: float | None) -> FreeMemory:
    """The host that was asked for, the one that the machine is known to have, or this one."""
    if asked_gib is not None:
        return FreeMemory(round(asked_gib * GIB), "the host planned for")
    if machine is not None and machine.host_memory_bytes is not None:
        return FreeMemory(machine.host_memory_bytes, "this machine")
    return FreeMemory(find_all_memory(), "this machine")


def _smaller_videos(module: VideoModule, params: SamplingParams) -> Iterator[dict[str, int]]:
    """Smaller videos that a model makes, the nearest first: which options are others.

    First the sizes that its family is published with, then fewer frames, then half of the size.
    """
    request = Request.of(module, params)
    sizes = [size for size in module.published_sizes if size[0] * size[1] < request.pixels]
    if request.height > request.width:
        sizes = [(width, height) for height, width in sizes]
    frames, step = request.num_frames, frames_per_latent(module)
    fewer = [1 + (frames - 1) // step // 2**n * step for n in range(1, frames.bit_length())]
    fewer = list(dict.fromkeys(count for count in fewer if count < frames))
    height, width = sizes[-1] if sizes else (request.height, request.width)
    half = (height // 64 * 32, width // 64 * 32)
    others = [(*size, frames) for size in sizes]
    others += [(height, width, count) for count in fewer]
    others += [(*half, count) for count in (frames, *fewer[-1:])]
    for other in others:
        named = dict(zip(("height", "width", "num_frames"), other, strict=True))
        with suppress(ValueError):  # no size of the model's
            module.resolve_sampling(params.merge(**named), is_complete=False)
            yield {name: new for name, new in named.items() if new != getattr(request, name)}


def _check_one_gpu(given: OffloadConfig) -> None:
    if given.use_fsdp_inference:
        raise ValueError(
            "A plan is for one GPU, and use_fsdp_inference=True shards the denoiser over several. "
            "Leave it out to plan what each GPU does without it."
        )


def check_budget(module: VideoModule, given: OffloadConfig) -> None:
    """Check that the budget among a user's flags has room for some video of the model.

    Raises:
        BudgetTooSmallError: If no video fits, however small.
        ValueError: As `find_budget`.
    """
    budget_gib, machine = given.gpu_memory_budget, find_machine()
    budget_bytes = find_budget(budget_gib, machine, is_here=True)
    if budget_bytes is not None:
        is_auto = budget_gib == "auto"
        check_fits_any(Workload.bare(module), given, machine, budget_bytes, is_auto=is_auto)


def open_headers(
    model: str | PathLike[str], *, dtype: str = "auto", is_packed: bool = False, **loading: Any
) -> VideoModule:
    """Open a model as for a GPU without reading a weight; of a hub id headers alone are fetched.

    Args:
        model: As in `make_plan`.
        dtype: As in `VideoModule.from_pretrained`. Quantizing reads every weight: a model that is
            to be quantized is opened in the dtypes that it is quantized from.
        is_packed: Of a model whose shapes come with the package: as `pack` would write it.
        **loading: Other arguments of `VideoModule.from_pretrained`.
    """
    opened_in = "auto" if dtype in QUANTIZATIONS else dtype
    parts = find_parts(model, **_where(loading))
    with headers_folder(parts.pipeline, is_packed=is_packed, **_of_files(loading)) as folder:
        if folder is not None:
            loading = {k: v for k, v in loading.items() if k != "revision"}
            if parts.file is None:
                model = folder
            else:
                loading["base"] = folder
        return VideoModule.from_pretrained(model, dtype=opened_in, device_type="cuda", **loading)


def find_machine() -> Machine | None:
    """Return this machine: as `probe` measured it, or from the table of cards; None without."""
    if not torch.cuda.is_available():
        return None
    measured = load_probe()
    if measured is not None:
        return measured
    memory_bytes = torch.cuda.get_device_properties().total_memory
    card = match_card(torch.cuda.get_device_name(), memory_bytes)
    return None if card is None else replace(card, host_memory_bytes=find_all_memory())


def find_budget(
    budget_gib: float | str | None, machine: Machine | None, *, is_here: bool
) -> int | None:
    """Return a budget in bytes.

    Args:
        budget_gib: As in `make_plan`.
        machine: The hardware.
        is_here: Whether it is this machine's, whose free memory can be asked for.

    Raises:
        ValueError: If the machine has less, or `auto` is asked for and there is no device to ask.
    """
    if budget_gib is None:
        return None
    if budget_gib != "auto":
        return _check_size(float(budget_gib), machine)
    if is_here and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return round((free + torch.cuda.memory_reserved()) * _AUTO_SHARE)
    if machine is None:
        raise ValueError(
            "gpu_memory_budget='auto' asks how much GPU memory is free, and this machine has no "
            'GPU. Pass a number of GiB, or name a card, such as plan --gpu "RTX 4090".'
        )
    return machine.memory_bytes - _CONTEXT_BYTES


def _check_size(budget_gib: float, machine: Machine | None) -> int:
    budget_bytes = round(budget_gib * GIB)
    if machine is not None and budget_bytes > machine.memory_bytes:
        raise ValueError(
            f"gpu_memory_budget={budget_gib:g} is more than all memory of the {machine.name}, "
            f"{machine.memory_bytes / GIB:.1f} GiB. Pass gpu_memory_budget=auto, or less."
        )
    return budget_bytes
