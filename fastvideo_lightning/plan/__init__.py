"""The plan: what goes where for a budget, how much memory and how long each stage takes.

Read in this order: `sizes` (what a model weighs), `cost` (what a video asks of it), `machine`
(what the hardware gives), `predict` (memory and time of a set of flags), `choose` (the best set).
"""

from typing import TYPE_CHECKING

from fastvideo_lightning.libraries import hand_on

if TYPE_CHECKING:
    from fastvideo_lightning.plan.choose import BudgetTooSmallError as BudgetTooSmallError
    from fastvideo_lightning.plan.machine import Machine as Machine
    from fastvideo_lightning.plan.machine import find_card as find_card
    from fastvideo_lightning.plan.plan import Plan as Plan
    from fastvideo_lightning.plan.planner import make_plan as make_plan

_HOME = {
    "BudgetTooSmallError": "choose",
    "Machine": "machine",
    "Plan": "plan",
    "find_card": "machine",
    "make_plan": "planner",
}

__all__ = list(_HOME)


__getattr__ = hand_on(__name__, _HOME)
