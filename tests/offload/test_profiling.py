import logging

import pytest

from fastvideo_lightning.offload.profiling import phase


def test_a_part_of_the_set_up_is_told_at_debug_also_where_it_fails(caplog):
    with caplog.at_level(logging.DEBUG, "fastvideo_lightning.offload.profiling"):
        with phase("read"):
            pass
        with pytest.raises(OSError, match="refused"), phase("register"):
            raise OSError("refused")
    assert [line.split(":")[0] for line in caplog.messages] == ["read", "register"]
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
