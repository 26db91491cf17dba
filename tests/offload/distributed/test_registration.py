import mmap

import pytest

from fastvideo_lightning.offload.host import mapped
from fastvideo_lightning.offload.host.mapped import GAP_BYTES, merge

PAGE = mmap.PAGESIZE
FAR = GAP_BYTES + 3 * PAGE
SIZE = 100 * FAR + 7


def test_ranges_become_pages_and_those_that_share_one_become_one_piece():
    ranges = [(FAR + 10, FAR + PAGE + 1), (5, PAGE + 3), (PAGE + 3, 2 * PAGE)]
    assert merge(ranges, SIZE) == [(0, 2 * PAGE), (FAR, FAR + 2 * PAGE)]


def test_a_short_gap_is_taken_in_and_the_file_is_not_exceeded():
    assert merge([(0, PAGE), (PAGE + GAP_BYTES, PAGE + GAP_BYTES + 1)], SIZE) == [
        (0, GAP_BYTES + 2 * PAGE)
    ]
    assert merge([(SIZE - 3, SIZE)], SIZE) == [(SIZE // PAGE * PAGE, SIZE)]


def test_a_piece_ends_where_a_chunk_of_the_file_does(monkeypatch):
    monkeypatch.setattr(mapped, "CHUNK_BYTES", 4 * PAGE)
    ranges = [(PAGE, 4 * PAGE), (4 * PAGE, 5 * PAGE), (6 * PAGE + 1, 6 * PAGE + 2)]
    assert merge(ranges, SIZE) == [(PAGE, 4 * PAGE), (4 * PAGE, 7 * PAGE)]


def test_a_range_that_crosses_a_chunk_is_a_mistake(monkeypatch):
    monkeypatch.setattr(mapped, "CHUNK_BYTES", 4 * PAGE)
    with pytest.raises(AssertionError, match="crosses"):
        merge([(0, 5 * PAGE), (4 * PAGE, 6 * PAGE)], SIZE)
