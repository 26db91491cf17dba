import pytest

from fastvideo_lightning.offload.distributed.agreement import Statement


@pytest.mark.parametrize("num_units", [0, 1, 5])
def test_what_a_rank_packs_is_what_the_others_unpack(num_units):
    said = Statement(
        joined=7,
        claims=[i % 3 for i in range(num_units)],
        loads=[100 + i for i in range(num_units)],
        alone=[i % 2 == 0 for i in range(num_units)],
    )
    packed = said.pack()
    assert len(packed) == 1 + 3 * num_units
    assert Statement.unpack(packed) == said
