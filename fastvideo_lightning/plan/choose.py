"""The best set of flags for a budget: every set is predicted, for there are only some hundreds."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import product
from math import ceil, log
from typing import Any

from fastvideo_lightning.config import OffloadConfig
from fastvideo_lightning.modules.roles import Role
from fastvideo_lightning.plan.host_tiers import HostBudgetTooSmallError
from fastvideo_lightning.plan.machine import GIB, Machine, find_card
from fastvideo_lightning.plan.predict import Prediction, predict
from fastvideo_lightning.plan.workload import Workload

CHOSEN = (
    "dit_layerwise_offload",
    "dit_resident_blocks",
    "num_slots",
    "text_encoder_cpu_offload",
    "text_encoder_layerwise_offload",
    "image_encoder_cpu_offload",
    "vae_cpu_offload",
    "vae_tiling",
)
"""The flags that a plan decides where the user has not."""

SLOTS = (2, 3)
"""Of which a plan chooses; why the third may help, `overlap` says."""

WORTH_PAIRING = 0.99
"""Share of a video's time that is left where calls are made in pairs, at most."""

TIGHTER = 0.85
"""Share of the memory that was too much which the next try may take."""

# Sets are ranked by their times on this card where the plan is for none.
_REFERENCE = "RTX 4090"


class BudgetTooSmallError(ValueError):
    """No set of flags fits the budget.

    Attributes:
        smallest_bytes: What the smallest set takes.
        smallest: That set.
        video: The size that was planned, as in `1280x720, 81 frames`.
        fitting: The options that make a smaller one that fits; empty where none was found.

    Args:
        budget_bytes: The budget.
        smallest: The smallest set that keeps the flags that were given.
        machine: The hardware; None where there is no telling how much memory it has.
        otherwise: What else would help, as the end of a sentence.
        is_auto: Whether the budget is what was found free.
        fits_smaller: Whether a smaller video may fit, which is proposed then; else the smallest set
            is of no video at all.
        video: The size that was planned, as in `1280x720, 81 frames`.
        fitting: The options that make a smaller one that fits; empty where none was looked for.
    """

    def __init__(
        self,
        budget_bytes: float,
        smallest: Prediction,
        machine: Machine | None = None,
        otherwise: str = "",
        *,
        is_auto: bool = False,
        fits_smaller: bool = True,
        video: str = "",
        fitting: Mapping[str, int] | None = None,
    ) -> None:
        self.smallest_bytes = smallest.reserved_bytes
        self.smallest = smallest
        self.video, self.fitting = video, dict(fitting or {})
        gib = round_up(self.smallest_bytes)
        stage = max(smallest.stages, key=lambda stage: stage.reserved_bytes).name
        budget = f"gpu_memory_budget={budget_bytes / GIB:.4g} is"
        if is_auto:
            where = machine.name if machine is not None else "GPU"
            budget = f"gpu_memory_budget=auto is {budget_bytes / GIB:.4g} GiB on the {where},"
        larger = f"{'' if fits_smaller else 'more than '}gpu_memory_budget={gib}"
        instead = [larger] if _has(machine, self.smallest_bytes) else []
        named = " ".join(f"{name}={value}" for name, value in self.fitting.items())
        smaller = f"a smaller height, width or num_frames{f': {named} fits' if named else ''}"
        instead += [smaller] if fits_smaller else []
        least = f"{gib} GiB{f' for {video}' if video else ''}"
        super().__init__(
            f"{budget} too small: the smallest possible is {least}, which the {stage} stage "
            f"takes. Pass {', or '.join(instead or ['a smaller model'])}{otherwise}."
        )


def _has(machine: Machine | None, size_bytes: int) -> bool:
    return machine is None or size_bytes <= machine.memory_bytes


def choose(
    subject: Workload,
    given: OffloadConfig,
    machine: Machine | None,
    budget_bytes: float,
    *,
    is_auto: bool = False,
    find_fitting: Callable[[], Mapping[str, int]] = dict,
) -> Prediction:
    """Return the fastest set of flags whose reserved memory stays under a budget.

    Among sets that are equally fast the one that keeps most on the device wins: it is the fastest
    also where the prediction is off. Tiles, which change pixels, are chosen only where nothing fits
    without them.

    Args:
        subject: The model and the video.
        given: Flags that the user passed (`given.given`) are kept.
        machine: The hardware.
        budget_bytes: Most that may be reserved on the device.
        is_auto: Whether that is what was found free, which an error says.
        find_fitting: Called where nothing fits: the options that make a video that does.

    Raises:
        BudgetTooSmallError: If nothing fits.
    """
    found = list(_predict_all(subject, given, machine or find_card(_REFERENCE)))
    fitting = [each for each in found if each.reserved_bytes <= budget_bytes]
    if not fitting:
        raise BudgetTooSmallError(
            budget_bytes,
            smallest_of(found),
            machine,
            _what_binds(subject, given, machine, budget_bytes),
            is_auto=is_auto,
            video=str(subject.request),
            fitting=find_fitting(),
        )
    best = min(fitting, key=_rank)
    return best if machine is not None else predict(subject, best.config, None)


def check_fits_any(
    bare: Workload,
    given: OffloadConfig,
    machine: Machine | None,
    budget_bytes: float,
    *,
    is_auto: bool = False,
) -> None:
    """Raise BudgetTooSmallError where no video of a model fits, however small.

    Args:
        bare: The model without a video.
        given: As in `choose`.
        machine: As in `choose`.
        budget_bytes: As in `choose`.
        is_auto: As in `choose`.
    """
    least = find_smallest(bare, given, machine)
    if least.reserved_bytes > budget_bytes:
        binding = _what_binds(bare, given, machine, budget_bytes)
        raise BudgetTooSmallError(
            budget_bytes, least, machine, binding, is_auto=is_auto, fits_smaller=False
        )


def _what_binds(
    subject: Workload, given: OffloadConfig, machine: Machine | None, budget_bytes: float
) -> str:
    """Say which of the user's flags are in the way, where something fits without them."""
    binding = [f"{name}={getattr(given, name)}" for name in CHOSEN if name in given.given]
    others = {name: getattr(given, name) for name in given.given if name not in CHOSEN}
    freest = find_smallest(subject, OffloadConfig(**others), machine)
    if not binding or freest.reserved_bytes > budget_bytes:
        return ""
    gib = round_up(freest.reserved_bytes)
    return f", or leave out {', '.join(binding)}: without, {gib} GiB are enough"


def choose_tighter(
    subject: Workload,
    given: OffloadConfig,
    machine: Machine | None,
    current: OffloadConfig,
    stage: str | None,
) -> Prediction | None:
    """Return the fastest set of flags that takes less than `current` in a stage.

    Args:
        subject: The model and the video.
        given: Flags that the user passed are kept.
        machine: The hardware.
        current: The flags under which memory ran out.
        stage: The stage in which it did; None for none of them.

    Returns:
        A set that takes at most `TIGHTER` of that stage's memory, or else the smallest; None where
        nothing takes less.
    """

    def size(each: Prediction) -> int:
        return max(s.reserved_bytes for s in each.stages if stage in (None, s.name))

    now = predict(subject, current, machine)
    found = list(_predict_all(subject, given, machine))
    smaller = [each for each in found if size(each) < size(now)]
    tight = [each for each in smaller if size(each) <= TIGHTER * size(now)]
    if tight:
        return min(tight, key=_rank)
    return min(smaller, key=lambda each: (size(each), _rank(each)), default=None)


def find_smallest(subject: Workload, given: OffloadConfig, machine: Machine | None) -> Prediction:
    """Return the set of flags that reserves least."""
    return smallest_of(_predict_all(subject, given, machine))


def _predict_all(
    subject: Workload, given: OffloadConfig, machine: Machine | None
) -> Iterator[Prediction]:
    """Predict every set of flags that the host has memory for.

    Raises:
        HostBudgetTooSmallError: It has for none.
    """
    refusal, is_any = None, False
    for config in possible_configs(subject, given):
        try:
            predicted = predict(subject, config, machine)
        except HostBudgetTooSmallError as error:
            refusal = error
            continue
        is_any = True
        yield predicted
    if refusal is not None and not is_any:
        raise refusal


def smallest_of(found: Iterable[Prediction]) -> Prediction:
    """Return the prediction that reserves least; of equal ones the fastest, untiled one."""
    return min(found, key=lambda each: (each.reserved_bytes, _rank(each)))


def settle_pairs(
    subject: Workload, given: OffloadConfig, machine: Machine | None, room_bytes: int | None
) -> Prediction:
    """Predict the flags that were given, and say whether `pair_guidance="auto"` is on.

    It is where a video is sooner by it and the device has room.
    """
    found = [predict(subject, replace(given, **pairs), machine) for pairs in _pairs_of(given)]
    apart, paired = found[0], found[-1]
    if room_bytes is None or paired.reserved_bytes > room_bytes or apart.time_s is None:
        return apart
    assert paired.time_s is not None
    return paired if paired.time_s < WORTH_PAIRING * apart.time_s else apart


def _pairs_of(given: OffloadConfig) -> list[dict[str, Any]]:
    """Whether calls are made in pairs: as was given, or with `auto` both, where that can be."""
    if given.pair_guidance != "auto":
        return [{}]
    options: list[dict[str, Any]] = [{"pair_guidance": False}]
    with suppress(ValueError):  # it cannot be combined with another flag
        replace(given, pair_guidance=True)
        options.append({"pair_guidance": True})
    return options


def possible_configs(subject: Workload, given: OffloadConfig) -> Iterator[OffloadConfig]:
    """All sets of flags that keep those that the user passed, each once in effect."""
    num_blocks = max((len(size.blocks) for size in subject.by_role(Role.DENOISER)), default=0)
    denoiser: list[dict[str, object]] = [{"dit_layerwise_offload": False, "dit_resident_blocks": 0}]
    for slots in SLOTS if "num_slots" not in given.given else (given.num_slots,):
        for count in range(0, num_blocks - slots + 1, slots):  # that some stream
            streamed = {"dit_layerwise_offload": True, "dit_resident_blocks": count}
            denoiser += [{**streamed, "num_slots": slots, **pairs} for pairs in _pairs_of(given)]
    encoder: list[dict[str, object]] = [
        {"text_encoder_cpu_offload": cpu, "text_encoder_layerwise_offload": streamed}
        for cpu, streamed in ((False, False), (False, True), (True, False))
    ]
    both = (False, True)
    images = both if subject.by_role(Role.IMAGE_ENCODER) else (True,)
    tiles = both if subject.has_tiles else (False,)
    rest: list[dict[str, object]] = [
        {"image_encoder_cpu_offload": image, "vae_cpu_offload": vae, "vae_tiling": tiled}
        for image, vae, tiled in product(images, both, tiles)
    ]
    for options in product(*(_allowed(each, given) for each in (denoiser, encoder, rest))):
        chosen = {name: value for option in options for name, value in option.items()}
        yield replace(given, **chosen)  # type: ignore[arg-type]


def _allowed(options: list[dict[str, object]], given: OffloadConfig) -> list[dict[str, object]]:
    """The options that agree with what was given; what was given takes its place in each."""
    fixed = {name: getattr(given, name) for name in given.given if name in CHOSEN}
    kept = [
        option
        for option in options
        if all(
            fixed.get(name, value) == value
            for name, value in option.items()
            if name not in ("dit_resident_blocks", "num_slots", "image_encoder_cpu_offload")
        )
    ]
    # Where no option agrees, as with both ways of offloading an encoder, what was given decides.
    merged = [
        {name: fixed.get(name, value) for name, value in option.items()}
        for option in kept or options[:1]
    ]
    return [option for i, option in enumerate(merged) if option not in merged[:i]]


def round_up(size_bytes: float) -> float:
    """GiB with one decimal, below 1 with two, never less."""
    digits = 10 if size_bytes >= GIB else 100
    return ceil(size_bytes / GIB * digits) / digits


def _rank(each: Prediction) -> tuple[bool, int, int]:
    """By tiles, then time in steps of a thousandth, then what stays on the device."""
    time = round(1000 * log(each.time_s)) if each.time_s else 0
    return each.config.vae_tiling, time, -each.device_bytes
