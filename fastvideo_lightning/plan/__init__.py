"""The plan: what goes where for a budget, how much memory and how long each stage takes.

Read in this order: `sizes` (what a model weighs), `cost` (what a video asks of it), `machine`
(what the hardware gives), `predict` (memory and time of a set of flags), `choose` (the best set).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastvideo_lightning.plan.choose import BudgetTooSmallError
    from fastvideo_lightning.plan.machine import Machine, find_card
    from fastvideo_lightning.plan.plan import Plan
    from fastvideo_lightning.plan.planner import make_plan

_HOME = {
    "BudgetTooSmallError": "choose",
    "Machine": "machine",
    "Plan": "plan",
    "find_card": "machine",
    "make_plan": "planner",
}

__all__ = ["BudgetTooSmallError", "Machine", "Plan", "find_card", "make_plan"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
