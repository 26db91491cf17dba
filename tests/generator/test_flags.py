"""ModelOffload, CPUExecution and Resident on components of a pipeline-like module, on the CPU."""

from dataclasses import dataclass

import lightning as L
import pytest
import torch
from torch import nn

from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload, Resident
from fastvideo_lightning.offload import hooks
from fastvideo_lightning.strategies import HostResidentStrategy
from tests.support.toys import OnMeta, make_toy, sample


@dataclass
class Code:
    mean: torch.Tensor


class Coder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(16, 8)
        self.out = nn.Linear(8, 16)
        self.where: list[int] = []

    def encode(self, x: torch.Tensor) -> Code:
        self.where.append(self.into.weight.data_ptr())
        return Code(self.into(x))

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        self.where.append(self.out.weight.data_ptr())
        if code.isnan().any():
            raise ValueError("not a code")
        return self.out(code)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x).mean)


class Pipe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = make_toy(3, seed=4)
        self.transformer = make_toy(4)
        self.vae = Coder().requires_grad_(False)

    def generate(self, x: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(self.vae.encode(self.transformer(self.encoder(x))).mean)


def make_callbacks():
    return [LayerwiseOffload("transformer.blocks"), CPUExecution("encoder"), ModelOffload("vae")]


def test_a_model_inside_of_one_computed_on_the_cpu_may_be_called_by_itself(monkeypatch):
    pipe, moved = Pipe(), []
    pipe.encoder.inner = nn.Linear(16, 16)
    pipe.encoder.inner.main_input_name = "input_ids"
    monkeypatch.setattr(hooks, "move_inputs", lambda args, kwargs, device: moved.append(device))
    callback = CPUExecution("encoder")
    callback.attach(pipe, "cpu")
    pipe.encoder.inner(torch.ones(1, 16))
    assert moved == [torch.device("cpu")]
    callback.detach()
    pipe.encoder.inner(torch.ones(1, 16))
    assert len(moved) == 1


def test_all_placements_together_equal_the_plain_module_and_restore_it():
    pipe, plain = Pipe(), Pipe()
    before = {name: id(p) for name, p in pipe.named_parameters()}
    callbacks = make_callbacks()
    for callback in callbacks:
        callback.attach(pipe, "cpu")
    for _ in range(3):
        assert torch.equal(pipe.generate(sample()), plain.generate(sample()))
    for callback in callbacks:
        callback.detach()
    assert {name: id(p) for name, p in pipe.named_parameters()} == before
    assert "decode" not in pipe.vae.__dict__
    assert torch.equal(pipe.generate(sample()), plain.generate(sample()))


def test_fabric_setup_attaches_and_teardown_detaches():
    pipe, plain = Pipe(), Pipe()
    callbacks = make_callbacks()
    fabric = L.Fabric(
        accelerator="cpu", devices=1, strategy=HostResidentStrategy(), callbacks=callbacks
    )
    fabric.launch()
    fabric.setup(pipe)
    assert all(callback.attachments[0].root is pipe for callback in callbacks)
    assert torch.equal(pipe.generate(sample()), plain.generate(sample()))
    fabric.call("teardown")
    assert not any(module._forward_hooks for module in pipe.modules())


def test_an_offloaded_component_computes_from_other_memory_than_its_host_master():
    pipe = Pipe()
    ModelOffload("vae").attach(pipe, "cpu")
    hosts = {pipe.vae.into.weight.data_ptr(), pipe.vae.out.weight.data_ptr()}
    pipe.vae(sample())
    assert not set(pipe.vae.where) & hosts
    assert {pipe.vae.into.weight.data_ptr(), pipe.vae.out.weight.data_ptr()} == hosts


def test_a_call_within_a_call_brings_the_component_in_once():
    pipe = Pipe()
    callback = ModelOffload("vae")
    callback.attach(pipe, "cpu")
    pipe.vae(sample())
    assert callback.attachments[0].engine.stats.copies == 1


def test_after_an_exception_in_decode_the_component_has_left_and_the_next_call_is_right():
    pipe, plain = Pipe(), Pipe()
    callback = ModelOffload("vae")
    callback.attach(pipe, "cpu")
    with pytest.raises(ValueError, match="not a code"):
        pipe.vae.decode(torch.full((1, 8), float("nan")))
    unit = callback.attachments[0].engine.units[0]
    assert unit.slot is None
    assert torch.equal(pipe.vae(sample()), plain.vae(sample()))


def test_edits_between_calls_are_seen():
    pipe, plain = Pipe(), Pipe()
    ModelOffload("vae").attach(pipe, "cpu")
    for model in (pipe.vae, plain.vae):
        model(sample())
        model.into.weight.data.add_(1)
        model.out.weight = nn.Parameter(torch.ones_like(model.out.weight), requires_grad=False)
    assert torch.equal(pipe.vae(sample()), plain.vae(sample()))


@pytest.mark.parametrize("kind", [CPUExecution, Resident, ModelOffload])
@pytest.mark.parametrize("part", ["vae", "vae.out"])
def test_a_component_may_be_cast_between_its_calls_also_in_the_middle_of_a_run(kind, part):
    pipe, plain = Pipe(), Pipe()
    callback = kind("vae")
    callback.attach(pipe, "cpu")
    callback.on_predict_batch_start()
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        for model in (pipe, plain):
            model.get_submodule(part).to(dtype)
        assert pipe.vae.out.weight.dtype == dtype
        x = sample().to(plain.vae.into.weight.dtype)
        if part == "vae":
            assert torch.equal(pipe.vae(x), plain.vae(x))
    assert torch.equal(pipe.vae(sample()), plain.vae(sample()))
    callback.on_predict_batch_end()
    callback.detach()
    assert torch.equal(pipe.vae(sample()), plain.vae(sample()))


def test_a_component_that_comes_in_cannot_be_moved_nor_be_cast_during_its_call():
    pipe = Pipe()
    ModelOffload("vae").attach(pipe, "cpu")
    with pytest.raises(RuntimeError, match=r"cannot be moved \(\.to\(\)"):
        pipe.vae.to("meta")
    pipe.vae.into.register_forward_pre_hook(lambda *_: pipe.vae.double())
    with pytest.raises(RuntimeError, match="cannot be moved or cast"):
        pipe.vae(sample())


@pytest.mark.parametrize("kind", [CPUExecution, Resident, ModelOffload])
def test_meta_parameters_are_read_once_from_their_sources(kind):
    plain = make_toy(3)
    toy = OnMeta(plain)
    callback = kind("")
    callback.attach(toy, "cpu")
    assert all(source.reads == 1 for source in toy.weight_sources.values())
    assert torch.equal(toy(sample()), plain(sample()))
    callback.detach()
    assert torch.equal(toy(sample()), plain(sample()))


def test_a_meta_parameter_without_source_is_named():
    toy = OnMeta(make_toy(2))
    del toy.weight_sources["head.bias"]
    with pytest.raises(RuntimeError, match=r"head\.bias is on the meta device"):
        Resident("").attach(toy, "cpu")
    assert not toy._forward_hooks


def test_attaching_twice_is_attaching_once():
    pipe = Pipe()
    callback = ModelOffload("vae")
    assert callback.attach(pipe, "cpu") is callback.attach(pipe, "cpu")
    assert len(pipe.vae._forward_hooks) == 1


@pytest.mark.parametrize("second", ["transformer", "transformer.blocks.0", ""])
def test_a_target_inside_of_another_is_refused(second):
    pipe = Pipe()
    LayerwiseOffload("transformer.blocks").attach(pipe, "cpu")
    with pytest.raises(ValueError, match="both place"):
        Resident(second).attach(pipe, "cpu")


@pytest.mark.parametrize("first", [0, 1])
def test_what_lies_between_the_blocks_can_have_a_placement_of_its_own(first):
    pipe, plain = Pipe(), Pipe()
    callbacks = [LayerwiseOffload("transformer.blocks"), ModelOffload("transformer.head")]
    for callback in (callbacks[first], callbacks[1 - first]):
        callback.attach(pipe, "cpu")
    assert torch.equal(pipe.generate(sample()), plain.generate(sample()))
    for callback in callbacks:
        callback.detach()
    assert torch.equal(pipe.generate(sample()), plain.generate(sample()))


def test_what_another_callback_places_does_not_stay_with_the_blocks():
    pipe = Pipe()
    ModelOffload("transformer.head").attach(pipe, "cpu")
    callback = LayerwiseOffload("transformer.blocks")
    callback.attach(pipe, "cpu")
    staying = {b.fqn for r in callback.attachments[0].residents for b in r.bindings}
    buffers = {f"transformer.blocks.{i}.table" for i in range(4)}
    assert staying - buffers == {"transformer.embed.weight", "transformer.embed.bias"}


def test_a_module_that_asks_where_it_computes_is_told():
    pipe = Pipe()
    pipe.execution_device = None
    Resident("vae").attach(pipe, "cpu")
    assert pipe.execution_device == torch.device("cpu")


def test_a_streamed_model_may_be_called_within_the_call_of_a_whole_component():
    pipe, plain = Pipe(), Pipe()
    shown = []

    def call_transformer(model):
        def hook(module, args, output):
            shown.append(module.weight.data_ptr())
            output = model.transformer(output)
            shown.append(module.weight.data_ptr())
            return output

        return hook

    for model in (pipe, plain):
        model.vae.out.register_forward_hook(call_transformer(model))
    for callback in make_callbacks():
        callback.attach(pipe, "cpu")
    for _ in range(2):
        assert torch.equal(pipe.vae(sample()), plain.vae(sample()))
    assert shown[::2] == shown[1::2]
    assert pipe.vae.out.weight.data_ptr() not in shown


@pytest.mark.parametrize("first", [0, 1])
def test_a_model_that_comes_in_whole_takes_the_slots_of_those_that_stream(first):
    root = nn.ModuleDict({"a": make_toy(7), "b": make_toy(2, seed=1)})
    expected = [root[fqn](sample()) for fqn in "ab"]
    callbacks = [LayerwiseOffload("a", num_slots=3), ModelOffload("b")]
    for callback in (callbacks[first], callbacks[1 - first]):
        callback.attach(root, "cpu")
    for fqn, output in zip("ab", expected, strict=True):
        assert torch.equal(root[fqn](sample()), output)
    engines = {callback.attachments[0].engine for callback in callbacks}
    assert [len(engine.ring.slots) for engine in engines] == [3]


def test_streams_of_one_module_with_other_numbers_of_slots_are_refused():
    root = nn.ModuleDict({"a": make_toy(7), "b": make_toy(7)})
    LayerwiseOffload("a").attach(root, "cpu")
    with pytest.raises(ValueError, match="got num_slots=3 beside num_slots=2"):
        LayerwiseOffload("b", num_slots=3).attach(root, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told_of():
    with pytest.raises(RuntimeError, match="torch finds no GPU here for 'cuda'. Pass 'cpu'."):
        LayerwiseOffload("blocks").attach(make_toy(4), "cuda")
