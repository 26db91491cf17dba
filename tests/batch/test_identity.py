import torch

from fastvideo_lightning.batch.identity import dtypes_of, name_model
from fastvideo_lightning.checkpoint.folder import ASSETS


def test_a_checkpoint_has_one_name_wherever_it_is_asked_for_from(tmp_path, monkeypatch):
    (tmp_path / "models" / "wan").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    paths = ["models/wan", "./models/wan/", str(tmp_path / "models" / "wan")]
    assert {name_model(path) for path in paths} == {str(tmp_path / "models" / "wan")}


def test_a_model_of_this_package_and_one_of_the_hubs_cache_are_named_without_this_machine(tmp_path):
    assert name_model(ASSETS / "tiny-shapes") == "tiny-shapes"
    cached = tmp_path / "hub" / "models--Wan-AI--Wan2.1" / "snapshots" / "0fad7"
    cached.mkdir(parents=True)
    assert name_model(cached) == "Wan-AI/Wan2.1@0fad7"
    assert name_model("WanPipeline") == "WanPipeline"


class Quantized(torch.Tensor):
    """Stands in for a quantized weight: a wrapper that tells its inner tensors."""

    @staticmethod
    def __new__(cls, data):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.bfloat16)

    def __init__(self, data):
        self.data8 = data

    def __tensor_flatten__(self):
        return ["data8"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return args[0]


def test_a_quantized_weight_is_told_from_the_plain_one_of_its_dtype():
    class Module(torch.nn.Module):
        weight_sources = {}

    module = Module()
    module.transformer = torch.nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    assert dtypes_of(module, "cpu") == {"transformer": "bfloat16"}
    weight = Quantized(torch.zeros(2, 2, dtype=torch.int8))
    module.transformer.weight = torch.nn.Parameter(weight, requires_grad=False)
    assert dtypes_of(module, "cpu") == {"transformer": "Quantized(int8)"}
