import pickle

import pytest

from fastvideo_lightning.modules.sampling import GridError, check_grid


def refusal(value: int) -> GridError:
    with pytest.raises(GridError) as refused:
        check_grid("width", value, first=16, step=16, last=4096)
    return refused.value


@pytest.mark.parametrize(
    ("most", "said"),
    [
        (10_000, "16 to 4096, got 5000. The nearest that this model can make is width=4096."),
        (1000, "16 to 992, got 5000. The nearest that this model can make is width=992."),
        (8, "16 to 4096, got 5000."),
    ],
)
def test_a_lower_limit_is_the_one_that_is_named(most: int, said: str) -> None:
    assert str(refusal(5000).at_most(most)).startswith(f"width must be a multiple of 16, {said}")


def test_a_refusal_reaches_another_process_as_it_is() -> None:
    assert str(pickle.loads(pickle.dumps(refusal(50)))) == str(refusal(50))
