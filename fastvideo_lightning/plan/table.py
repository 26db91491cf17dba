"""Which card and how much host memory make which video of which model, in how long.

The tables of README and the documentation, and the picker in it, are made of these rows. The models
are those whose shapes come with the package.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from fastvideo_lightning.config import OffloadConfig, SamplingParams
from fastvideo_lightning.modules import VideoModule
from fastvideo_lightning.plan.choose import choose
from fastvideo_lightning.plan.component_plan import ON_CPU
from fastvideo_lightning.plan.host_memory import budget_of
from fastvideo_lightning.plan.machine import GIB, Machine, find_card
from fastvideo_lightning.plan.notes import few_steps_s
from fastvideo_lightning.plan.planner import find_budget, open_headers
from fastvideo_lightning.plan.predict import Prediction
from fastvideo_lightning.plan.sizes import frames_per_latent, measure_components
from fastvideo_lightning.plan.workload import Workload


@dataclass(frozen=True)
class Row:
    """One video on one machine.

    Attributes:
        model: Hub id.
        height: Pixels.
        width: Pixels.
        num_frames: Frames.
        num_steps: Denoising steps that the model is published with.
        is_default: Whether it is the size that the model makes unasked.
        card: A name in the table of cards.
        vram_gib: Device memory that its driver gives.
        ram_gib: Memory of the host.
        gpu_gib: Device memory that is reserved at most; None where the video does not fit.
        host_gib: Host memory that the weights take, but for pages of files that can be dropped.
        time_s: Of one video; None where it does not fit.
        few_steps_s: Of one video in four steps and without guidance.
        is_packed: Whether the checkpoint has to be packed first, for the host to hold it.
        reads_disk: Whether weights are read from the disk on their way.
        has_tiles: Whether the VAE decodes in tiles.
    """

    model: str
    height: int
    width: int
    num_frames: int
    num_steps: int
    is_default: bool
    card: str
    vram_gib: float
    ram_gib: int
    gpu_gib: float | None = None
    host_gib: float | None = None
    time_s: float | None = None
    few_steps_s: float | None = None
    is_packed: bool = False
    reads_disk: bool = False
    has_tiles: bool = False


def make_rows(models: Iterable[str], cards: Sequence[str], rams_gib: Sequence[int]) -> list[Row]:
    """Plan every size of every model on every card beside every host memory.

    Args:
        models: Hub ids whose shapes come with the package.
        cards: Names as `find_card` takes them.
        rams_gib: Memory of hosts.
    """
    machines = [
        replace(find_card(card), host_memory_bytes=ram * GIB) for card in cards for ram in rams_gib
    ]
    return [row for model in models for row in _rows_of(model, machines)]


def _rows_of(model: str, machines: Sequence[Machine]) -> Iterator[Row]:
    published, packed = open_headers(model), open_headers(model, is_packed=True)
    components = measure_components(packed)
    for number, params in enumerate(_videos(published)):
        stored = Workload.of(published, params)
        kinds = (stored, replace(stored, components=components))
        for machine in machines:
            yield _row(model, kinds, machine, is_default=number == 0)


def _videos(module: VideoModule) -> list[SamplingParams]:
    """What a model makes unasked, the smaller sizes it is published for, and half of the frames."""
    default = module.resolve_sampling(SamplingParams(), is_complete=False)
    pixels = (default.height or 0) * (default.width or 0)
    smaller = [size for size in module.published_sizes if size[0] * size[1] < pixels]
    found = [default, *(default.merge(height=h, width=w) for h, w in smaller)]
    step = frames_per_latent(module)
    half = 1 + ((default.num_frames or 1) - 1) // step // 2 * step
    return [*found, found[-1].merge(num_frames=half)]


def _row(
    model: str, kinds: tuple[Workload, Workload], machine: Machine, *, is_default: bool
) -> Row:
    """Plan the checkpoint as it is published, or else as `pack` writes it."""
    request, memory = kinds[0].request, machine.host_memory_bytes or 0
    row = Row(
        model,
        request.height,
        request.width,
        request.num_frames,
        request.num_steps,
        is_default,
        machine.name,
        round(machine.memory_bytes / GIB, 1),
        memory // GIB,
    )
    for is_packed, subject in enumerate(kinds):
        found = _choose(subject, machine)
        if found is None:
            continue
        host_bytes = _held_bytes(subject, found)
        if is_packed or host_bytes <= budget_of(memory):
            return replace(
                row,
                gpu_gib=round(found.reserved_bytes / GIB, 1),
                host_gib=round(host_bytes / GIB, 1),
                time_s=round(found.time_s),
                few_steps_s=round(few_steps_s(subject, found.config, machine)),
                is_packed=bool(is_packed),
                reads_disk=any(part.disk_bytes for part in found.components),
                has_tiles=found.config.vae_tiling,
            )
    return row


def _held_bytes(subject: Workload, found: Prediction) -> int:
    """Bytes that the host holds; what the CPU computes with is mapped where it runs as stored."""
    whole = {size.fqn: size.whole for size in subject.components}
    return sum(
        whole[part.fqn].held_bytes if part.where == ON_CPU else part.host_bytes
        for part in found.components
    )


def _choose(subject: Workload, machine: Machine) -> Prediction | None:
    budget = find_budget("auto", machine, is_here=False)
    try:
        return choose(subject, OffloadConfig(), machine, budget or 0)
    except ValueError:  # not in this memory
        return None
