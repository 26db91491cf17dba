"""Who owns a tensor whose module is part of two others."""

from torch import nn

from fastvideo_lightning.offload.tensors.bindings import find_bindings, split_by_owner


def fqns(bindings) -> list[str]:
    return [binding.fqn for binding in bindings]


def test_a_module_inside_of_two_blocks_belongs_to_neither():
    shared = nn.Linear(2, 2, bias=False)
    first = nn.ModuleDict({"own": nn.Linear(2, 2, bias=False), "shared": shared})
    second = nn.ModuleDict({"shared": shared})
    root = nn.ModuleDict({"first": first, "second": second})
    (inside, none), outside = split_by_owner(find_bindings(root), [first, second])
    assert (fqns(inside), fqns(none)) == (["first.own.weight"], [])
    assert fqns(outside) == ["first.shared.weight"]


def test_a_module_that_the_root_also_has_elsewhere_belongs_to_no_block():
    shared = nn.Linear(2, 2, bias=False)
    adapter = nn.ModuleDict({"own": nn.Linear(2, 2, bias=False), "entry": shared})
    root = nn.ModuleDict({"unet": nn.ModuleDict({"entry": shared}), "adapter": adapter})
    (inside,), outside = split_by_owner(find_bindings(root), [adapter], root)
    assert fqns(inside) == ["adapter.own.weight"]
    assert fqns(outside) == ["unet.entry.weight"]


def test_the_root_itself_owns_all_that_is_in_it():
    root = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False)})
    (inside,), outside = split_by_owner(find_bindings(root), [root], root)
    assert (fqns(inside), outside) == (["a.weight"], [])
