"""A model is built without its weights, and no other thread sees anything of it."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import checkpoints
from support.checkpoints import weights_of
from torch import nn

from fastvideo_lightning import VideoModule
from fastvideo_lightning.checkpoint.building import built_on_meta, computing_in
from fastvideo_lightning.libraries import quiet_imports

FindCheckpoint = Callable[[str], Path]
BOUNDS = {"max_parameters": 100, "max_elements": 1 << 20}

MADE: dict[str, Callable[[], torch.Tensor]] = {
    "empty": lambda: torch.empty(0),
    "zeros": lambda: torch.zeros((2, 3)),
    "ones": lambda: torch.ones(2, 3),
    "given dtype": lambda: torch.ones(3, dtype=torch.float32),
    "full": lambda: torch.full((2,), 0.3),
    "full of integers": lambda: torch.full((2,), 3),
    "tensor": lambda: torch.tensor([1, 0.1, 0.2]),
    "scalar": lambda: torch.tensor(0.1),
    "integers": lambda: torch.tensor([1, 2]),
    "booleans": lambda: torch.tensor([True, False]),
    "numpy": lambda: torch.tensor(np.ones(3, "float32")),
    "as_tensor": lambda: torch.as_tensor([0.1, 0.7]),
    "arange": lambda: torch.arange(0, 1, 0.1),
    "arange of integers": lambda: torch.arange(5),
    "linspace": lambda: torch.linspace(1, 1000, 77),
    "logspace": lambda: torch.logspace(0, 2, 5),
    "eye": lambda: torch.eye(3),
    "hann": lambda: torch.hann_window(9),
    "division of integers": lambda: torch.arange(0, 1000, 7) / 13,
    "division by integers": lambda: 1.0 / torch.arange(1, 700, 3),
    "integers times a float": lambda: torch.arange(600) * 0.1,
    "power of integers": lambda: torch.pow(10000.0, torch.arange(0, 64, 2) / 64),
    "root of integers": lambda: torch.arange(600).sqrt(),
    "cosine of integers": lambda: torch.cos(torch.arange(600)),
    "choice": lambda: torch.where(torch.tensor([True, False]), 0.3, 0.7),
    "given width": lambda: torch.arange(600).float() / 7,
    "given double": lambda: torch.arange(600).double() / 7,
    "rotary": lambda: torch.outer(
        torch.arange(300), 1.0 / 10000 ** (torch.arange(0, 16, 2)[:8].float() / 16)
    ),
    "like": lambda: torch.zeros_like(torch.arange(3.0)),
    "new": lambda: torch.arange(3.0).new_ones(2),
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", MADE)
def test_a_thread_computes_as_under_another_default_dtype(name: str, dtype: torch.dtype) -> None:
    with default_dtype(dtype):
        expected = MADE[name]()
    with computing_in(dtype):
        made = MADE[name]()
    assert made.dtype == expected.dtype
    assert torch.equal(made, expected)


class Slow(nn.Module):
    """Waits within its constructor until another thread has looked around."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        with ThreadPoolExecutor(1) as other:
            other.submit(meanwhile).result()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("angles", torch.arange(3) / 3)
        nn.init.trunc_normal_(self.linear.weight)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.ones_(self.linear.bias)
        self.noise = nn.Parameter(torch.randn(5))


def test_no_other_thread_sees_that_a_model_is_built() -> None:
    seen = []

    def look_around() -> None:
        made = nn.Linear(3, 4)
        seen.append((made.weight.device.type, made.weight.dtype, bool(made.weight.any())))
        seen.append((torch.get_default_dtype(), torch.ones(1).dtype, torch.tensor(0.5).dtype))

    with built_on_meta(torch.bfloat16, **BOUNDS):
        model = Slow(look_around)
    fp32 = torch.float32
    assert seen == [("cpu", fp32, True), (fp32, fp32, fp32)]
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert torch.equal(model.angles, (torch.arange(3).bfloat16() / 3))
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def make_layers() -> dict[str, torch.Tensor]:
    """Return weights of layers of torch's and of an adapter of PEFT's, and what is drawn next."""
    peft = pytest.importorskip("peft", reason="needs PEFT")
    torch.manual_seed(7)
    layers = nn.ModuleDict(
        {
            "linear": nn.Linear(3, 4),
            "conv": nn.Conv3d(2, 3, 1),
            "embedding": nn.Embedding(5, 2),
            "attention": nn.MultiheadAttention(4, 2),
            "norm": nn.LayerNorm(3),
            "own": nn.ParameterList([torch.randn(3)]),
        }
    )
    adapter = peft.LoraConfig(r=2, target_modules=["linear"])
    peft.inject_adapter_in_model(adapter, layers)
    for name, parameter in layers.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
    return {**layers.state_dict(), "drawn next": torch.rand(3)}


@pytest.mark.parametrize("when", ["after", "beside"])
def test_a_layer_made_after_or_beside_a_load_is_initialized_as_torch_does(
    when: str, checkpoint: FindCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    with torch.random.fork_rng():
        with monkeypatch.context() as plain:
            plain.setattr(nn.modules.module, "_global_parameter_registration_hooks", {})
            expected = make_layers()
        if when == "after":
            VideoModule.from_pretrained(checkpoint("t2v"), dtype="bf16")
            made.append(make_layers())
        else:
            with built_on_meta(torch.bfloat16, **BOUNDS):
                Slow(lambda: made.append(make_layers()))
    assert made[0].keys() == expected.keys()
    for name, tensor in expected.items():
        assert made[0][name].dtype == tensor.dtype, name
        assert torch.equal(made[0][name], tensor), name


def test_a_model_draws_nothing_from_torch(checkpoint: FindCheckpoint) -> None:
    folder = checkpoint("t2v")
    before = torch.get_rng_state()
    VideoModule.from_pretrained(folder, dtype="bf16")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.ModuleList(nn.Linear(1, 1) for _ in range(10**9)), "more parameters"),
        (lambda: torch.zeros(10**6, 10**6), r"\[1000000, 1000000\]"),
        (lambda: torch.ones((1 << 11, 1 << 10)), r"\[2048, 1024\]"),
        (lambda: torch.arange(1 << 21), "2097152"),
    ],
)
def test_a_model_that_is_larger_than_its_weights_is_not_built(make, message) -> None:
    with pytest.raises(OverflowError, match=message), built_on_meta(torch.float32, **BOUNDS):
        make()


def buffers_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_buffers())


@pytest.mark.parametrize(
    "kind",
    [
        "t2v",
        *(
            pytest.param(kind, marks=pytest.mark.exhaustive)
            for kind in checkpoints.WRITERS
            if kind != "t2v"
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_model_computes_is_as_where_the_whole_process_builds_it(
    checkpoint: FindCheckpoint, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    from fastvideo_lightning.checkpoint import components

    @contextmanager
    def switched(dtype: torch.dtype, **_: int) -> Iterator[None]:
        with default_dtype(dtype), no_init_weights(), init_empty_weights(include_buffers=False):
            yield

    module = VideoModule.from_pretrained(checkpoint(kind), dtype=dtype, device_type="cpu")
    monkeypatch.setattr(components, "built_on_meta", switched)
    expected = VideoModule.from_pretrained(checkpoint(kind), dtype=dtype, device_type="cpu")
    assert buffers_of(module).keys() == buffers_of(expected).keys()
    for name, buffer in buffers_of(expected).items():
        assert buffers_of(module)[name].dtype == buffer.dtype, name
        assert torch.equal(buffers_of(module)[name], buffer), name
    for name, weight in expected.state_dict().items():
        assert module.weight_sources[name] == expected.weight_sources[name], name
        assert module.state_dict()[name].device == weight.device, name


def pickled(folder: Path, component: str, name: str) -> None:
    path = weights_of(folder, component)
    torch.save(load_file(path), path.parent / name)
    path.unlink()


def renamed(folder: Path) -> None:
    pickled(folder, "text_encoder", "pytorch_model.bin")
    pickled(folder, "transformer", "diffusion_pytorch_model.bin")


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_a_librarys_loader_leaves_the_default_dtype_alone(
    broken: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dtype == "int8":
        pytest.importorskip("torchao", reason="needs torchao")
    else:
        renamed(broken)
    expected = VideoModule.from_pretrained(broken, dtype=dtype, allow_pickle=True)
    dtypes = []
    set_default = torch.set_default_dtype

    def note(dtype: torch.dtype) -> None:
        dtypes.append(dtype)
        set_default(dtype)

    monkeypatch.setattr(torch, "set_default_dtype", note)
    module = VideoModule.from_pretrained(broken, dtype=dtype, allow_pickle=True)
    assert set(dtypes) <= {torch.float32}
    loaded, others = module.state_dict(), expected.state_dict()
    assert {n: w.dtype for n, w in loaded.items()} == {n: w.dtype for n, w in others.items()}
    kinds = [type(component) for component in module.children()]
    assert kinds == [type(component) for component in expected.children()]
    assert all(kind is getattr(sys.modules[kind.__module__], kind.__name__) for kind in kinds)


def test_loads_at_once_are_as_alone(broken: Path) -> None:
    renamed(broken)  # by the libraries' own loaders, beside one that builds
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)

    def load(dtype: str) -> list[tuple[str, torch.dtype, str]]:
        module = VideoModule.from_pretrained(
            broken, dtype=dtype, allow_pickle=True, device_type="cpu"
        )
        return [(name, w.dtype, w.device.type) for name, w in module.state_dict().items()]

    try:
        alone = {dtype: load(dtype) for dtype in ("fp32", "bf16")}
        with ThreadPoolExecutor(4) as pool:
            for dtype, made in [(d, pool.submit(load, d)) for d in [*alone] * 4]:
                assert made.result() == alone[dtype]
    finally:
        sys.setswitchinterval(interval)
    left = nn.Linear(2, 2).weight
    assert (left.device.type, left.dtype) == ("cpu", torch.float32)
    assert nn.Module.register_parameter.__module__ == "torch.nn.modules.module"


def test_what_a_thread_does_not_want_to_hear_others_do(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("some.library")
    with caplog.at_level(logging.DEBUG), quiet_imports():
        log.warning("of an optional package")
        log.error("of a failure")
        other = threading.Thread(target=log.warning, args=("of another thread",))
        other.start()
        other.join()
    log.warning("afterwards")
    said = [record.message for record in caplog.records if record.name == "some.library"]
    assert said == ["of a failure", "of another thread", "afterwards"]
