"""Parts of what is offloaded that are called by themselves, from anywhere."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fastvideo_lightning.callbacks import LayerwiseOffload, ModelOffload
from tests.support.toys import Toy, make_toy, sample

PLACEMENTS = {
    "blocks": lambda: LayerwiseOffload("m"),
    "one slot": lambda: LayerwiseOffload("m", num_slots=1),
    "residents": lambda: LayerwiseOffload("m", resident_blocks=2),
    "residents that take turns": lambda: LayerwiseOffload(
        "m", resident_blocks=2, share_residents=True
    ),
    "skippable": lambda: LayerwiseOffload("m", skippable=True),
    "whole": lambda: ModelOffload("m"),
}


class AskingAround(Toy):
    """Calls parts of its blocks before, between and after them, as DiT and others do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks[0].norm(x)
        for block, other in zip(self.blocks, reversed(self.blocks), strict=True):
            x = block(x) + other.norm(x)
        return self.blocks[0].norm(x) + self.blocks[2].down(self.blocks[2].up(x))


def make_root(model: type[Toy] = AskingAround) -> nn.Module:
    root = nn.Module()
    torch.manual_seed(0)
    root.m = model(16, 4)
    return root


def see_what_parts_compute_with(root: nn.Module, seen: list[tuple[str, int]]) -> None:
    def see(fqn: str, part: nn.Module):
        hook = lambda *_: seen.append((fqn, part.weight.data_ptr()))  # noqa: E731
        part.register_forward_pre_hook(hook)

    for fqn, part in root.named_modules():
        if isinstance(part, nn.Linear | nn.LayerNorm) and ".blocks." in fqn:
            see(fqn, part)


@pytest.mark.parametrize("kind", PLACEMENTS)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("in_batch", [False, True])
def test_parts_called_by_the_model_compute_from_the_device_as_they_do_when_resident(
    kind, mode, in_batch
):
    plain, root = make_root(), make_root()
    callback = PLACEMENTS[kind]()
    callback.attach(root, "cpu")
    (engine,) = vars(root)["_offload_engines"].values()
    moved = {name for unit in engine.units for name in unit.host_tensors()}
    hosts = {name: tensor.data_ptr() for name, tensor in root.named_parameters() if name in moved}
    seen: list[tuple[str, int]] = []
    see_what_parts_compute_with(root, seen)
    if in_batch:
        callback.on_predict_batch_start()
    for _ in range(3):
        with mode():
            assert torch.equal(root.m(sample()), plain.m(sample()))
        engine.check()
    if in_batch:
        callback.on_predict_batch_end()
    assert len(seen) > 3 * 4 * 4
    assert not [fqn for fqn, address in seen if address == hosts.get(f"{fqn}.weight")]


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_any_part_called_from_outside_computes_from_the_device_and_sees_edits(kind):
    plain, root = make_root(), make_root()
    PLACEMENTS[kind]().attach(root, "cpu")
    (engine,) = vars(root)["_offload_engines"].values()
    for edit in (0.0, 0.5):
        for each in (plain, root):
            with torch.no_grad():
                for weight in each.parameters():
                    weight.add_(edit)
        for i in range(4):
            for name in ("norm", "up"):
                part, other = (getattr(each.m.blocks[i], name) for each in (root, plain))
                assert torch.equal(part(sample()), other(sample()))
        engine.check()


def test_gradients_of_a_part_called_alone_are_those_of_the_plain_module():
    plain, root = make_root(), make_root()
    LayerwiseOffload("m").attach(root, "cpu")
    for each in (plain, root):
        (each.m.blocks[1].up(sample()).sum() + each.m.blocks[2].up(sample()).sum()).backward()
    for i in (1, 2):
        one, other = (each.m.blocks[i].up.weight.grad for each in (plain, root))
        assert torch.equal(one, other)


def test_the_model_calls_parts_within_their_block_without_a_detour():
    root = make_root(Toy)
    LayerwiseOffload("m").attach(root, "cpu")
    root.m(sample())
    (engine,) = vars(root)["_offload_engines"].values()
    inside: list[bool] = []
    root.m.blocks[1].up.register_forward_pre_hook(
        lambda module, _: inside.append("_call_impl" in vars(module))
    )
    root.m(sample())
    assert inside == [False]
    engine.check()


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_part_can_be_copied_once_its_callback_is_detached_and_is_refused_before(copied):
    root = make_root()
    callback = LayerwiseOffload("m")
    callback.attach(root, "cpu")
    with pytest.raises(RuntimeError, match=r"m\.blocks\.1\.up is being offloaded"):
        copied(root.m.blocks[1].up)
    callback.detach()
    copied(root.m.blocks[1].up)
    assert not [name for name, part in root.named_modules() if "_call_impl" in vars(part)]


def test_a_part_that_came_after_attach_is_called_by_itself_too():
    plain, root = make_root(Toy), make_root(Toy)
    callback = LayerwiseOffload("m")
    callback.attach(root, "cpu")
    for each in (plain, root):
        torch.manual_seed(1)
        each.m.blocks[1].adapter = nn.Linear(16, 16)
        each.m(sample())
        each.m.blocks[1].adapter(sample())
    (unit,) = (u for u in callback.attachments[0].units if u.fqn == "m.blocks.1")
    host = unit.host_tensors()["m.blocks.1.adapter.weight"].data_ptr()
    seen: list[int] = []
    root.m.blocks[1].adapter.register_forward_pre_hook(
        lambda module, _: seen.append(module.weight.data_ptr())
    )
    out = root.m.blocks[1].adapter(sample())
    assert torch.equal(out, plain.m.blocks[1].adapter(sample()))
    assert host not in seen


def test_a_toy_without_calls_of_parts_has_the_same_copies_as_before():
    toy = make_toy(4)
    callback = LayerwiseOffload("blocks")
    callback.attach(toy, "cpu")
    engine = callback.attachments[0].engine
    callback.on_predict_batch_start()
    for _ in range(3):
        toy(sample())
    callback.on_predict_batch_end()
    assert engine.stats.misses == 0
    assert engine.stats.copies == 3 * 4 + 1
