"""The plan as bars: each piece as long as what it takes, and nothing of a name is markup."""

import re
from dataclasses import replace

import pytest

from fastvideo_lightning.plan import Plan, make_plan
from fastvideo_lightning.serve.bars import draw_bars


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan("tiny-shapes")


def bars_of(html: str) -> dict[str, float]:
    """Return how much of each bar is filled, by its name, in percent."""
    bars = re.findall(r'aria-label="([^:]+):[^>]*>(.*?)</div>', html, flags=re.DOTALL)
    return {
        name: sum(float(width) for width in re.findall(r"width:([\d.]+)%", inner))
        for name, inner in bars
    }


def test_a_bar_is_as_long_as_its_part_of_the_budget(plan) -> None:
    within = replace(plan, budget_bytes=4 * plan.reserved_bytes)
    filled = bars_of(draw_bars(within))
    assert filled["GPU memory"] == pytest.approx(25, abs=0.01)
    assert filled["Disk"] == 0


def test_what_is_read_from_the_disk_has_a_bar_of_its_own(plan) -> None:
    first, *others = plan.prediction.components
    whole = sum(part.size_bytes for part in plan.prediction.components)
    from_disk = replace(first, host_bytes=0, cached_bytes=whole // 8, disk_bytes=whole // 8)
    places = replace(plan.prediction, components=(from_disk, *others))
    filled = bars_of(draw_bars(replace(plan, prediction=places)))
    assert filled["Disk"] == pytest.approx(25, abs=0.01)


def test_a_machine_without_a_gpu_is_shown_what_lies_in_its_own_memory_first(plan) -> None:
    html = draw_bars(plan, {"transformer": 1 << 20})
    assert html.index("This machine has no GPU") < html.index("On a GPU it would be")
    assert "This machine has no GPU" not in draw_bars(plan)


def test_a_name_in_a_plan_is_no_markup(plan) -> None:
    html = draw_bars(replace(plan, model="<img src=x>"))
    assert "<img" not in html
    assert "&lt;img" in html
