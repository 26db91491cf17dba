import pytest

from fastvideo_lightning.plan.host_memory import find_all_memory, find_free_memory
from fastvideo_lightning.plan.machine import GIB


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A machine with 64 GiB free, and no groups yet."""
    available = type("Memory", (), {"available": 64 * GIB, "total": 80 * GIB})
    monkeypatch.setattr("psutil.virtual_memory", available)
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path


def join(root, line):
    (root / "proc/self/cgroup").write_text(line + "\n")


def group(root, path, **files):
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.mark.parametrize("line", [None, "0::/nowhere", "5:cpu:/job", "0::/../../host"])
def test_without_a_group_that_limits_it_is_what_the_machine_has(root, line):
    if line is not None:
        join(root, line)
    free = find_free_memory(root)
    assert (free.size_bytes, free.limit) == (64 * GIB, "the machine")


def test_the_least_of_all_groups_up_the_tree_counts(root):
    join(root, "0::/slice/job/step")
    group(root, "slice", memory__max=20 * GIB, memory__current=12 * GIB)
    group(root, "slice/job", memory__max="max", memory__current=3 * GIB)
    group(root, "slice/job/step", memory__max=16 * GIB, memory__current=3 * GIB)
    free = find_free_memory(root)
    assert (free.size_bytes, free.limit) == (8 * GIB, "the cgroup /slice")


def test_pages_of_files_are_free_and_what_throttles_is_a_limit(root):
    join(root, "0::/job")
    stat = f"anon 5\ninactive_file {2 * GIB}\nactive_file {GIB}\nshmem 7"
    files = {"memory__max": 12 * GIB, "memory__high": 10 * GIB, "memory__current": 8 * GIB}
    group(root, "job", **files, memory__stat=stat)
    assert find_free_memory(root).size_bytes == 5 * GIB


def test_groups_of_the_first_version_count_as_well(root):
    join(root, "3:cpu,memory:/docker/abc\n0::/docker/abc")
    stat = f"total_inactive_file {GIB}\ntotal_active_file 0"
    limits = {"memory__limit_in_bytes": 6 * GIB, "memory__usage_in_bytes": 4 * GIB}
    group(root, "memory/docker/abc", **limits, memory__stat=stat)
    nothing = {"memory__limit_in_bytes": 9223372036854771712, "memory__usage_in_bytes": 5 * GIB}
    group(root, "memory", **nothing)
    assert find_free_memory(root).size_bytes == 3 * GIB


def test_in_a_container_whose_path_leads_nowhere_its_root_counts(root):
    join(root, "0::/docker/abc")
    group(root, "", memory__max=4 * GIB, memory__current=5 * GIB)
    free = find_free_memory(root)
    assert (free.size_bytes, free.budget_bytes) == (0, 0)


def test_auto_leaves_a_margin(root):
    assert find_free_memory(root).budget_bytes == round(64 * GIB * 0.9)
    group(root, "", memory__max=4 * GIB, memory__current=0)
    join(root, "0::/")
    assert find_free_memory(root).budget_bytes == GIB


def test_all_memory_is_the_machine_s_or_what_its_groups_let_whatever_is_used(root):
    assert find_all_memory(root) == 80 * GIB
    join(root, "0::/slice/job")
    group(root, "slice", memory__max=20 * GIB, memory__current=12 * GIB)
    group(root, "slice/job", memory__max="max", memory__current=3 * GIB)
    assert find_all_memory(root) == 20 * GIB
    join(root, "3:memory:/docker")
    group(root, "memory/docker", memory__limit_in_bytes=6 * GIB, memory__usage_in_bytes=5 * GIB)
    assert find_all_memory(root) == 6 * GIB


def test_here_some_memory_is_left():
    free = find_free_memory()
    assert 0 < free.budget_bytes < free.size_bytes
