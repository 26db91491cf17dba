"""Arguments of placement callbacks are checked when they are made, not when they are used."""

import pytest

from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload, Resident
from tests.support.toys import make_toy


@pytest.mark.parametrize("name", ["num_slots", "resident_blocks"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("3", TypeError),
        (None, TypeError),
        (2.0, TypeError),
        (2.5, TypeError),
        (float("nan"), TypeError),
        (-1, ValueError),
        (True, ValueError),
    ],
)
def test_a_number_of_blocks_that_is_no_whole_number_is_refused_at_once(name, value, error):
    wanted = f"{name} must be a whole number, . or more, got {value!r}. Pass one such as {name}="
    with pytest.raises(error, match=wanted):
        LayerwiseOffload("blocks", **{name: value})


@pytest.mark.parametrize("target", [None, 3, make_toy(1)])
@pytest.mark.parametrize("kind", [LayerwiseOffload, ModelOffload, CPUExecution, Resident])
def test_a_target_that_is_no_name_is_refused_at_once(kind, target):
    with pytest.raises(
        TypeError, match=f"text, got {type(target).__name__}. Pass one such as {kind.__name__}"
    ):
        kind(target)
