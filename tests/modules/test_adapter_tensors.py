"""Every tensor of an adapter's file is used, however it is spelled, or an error names one."""

import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fastvideo_lightning import VideoModule

LAYERS = ("attn1.to_q", "attn1.to_v", "attn2.to_k", "attn2.to_out.0", "ffn.net.2")
THEIRS = {  # what Wan's own code calls them
    "attn1.to_q": "self_attn.q",
    "attn1.to_v": "self_attn.v",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_out.0": "cross_attn.o",
    "ffn.net.2": "ffn.2",
}
State = dict[str, torch.Tensor]
SIZES = {"ffn.net.2": (48, 24)}


@pytest.fixture
def module(checkpoint) -> VideoModule:
    made = VideoModule.from_pretrained(checkpoint("t2v"))
    made.check_placement()
    return made


@pytest.fixture
def state(module) -> State:
    """A LoRA of two ranks in diffusers' keys, without the prefix of a component."""
    torch.manual_seed(5)
    made, denoiser = {}, module.get_submodule("transformer")
    for block in range(2):
        for layer in LAYERS:
            name = f"blocks.{block}.{layer}"
            rows, columns = denoiser.get_submodule(name).weight.shape
            rank = 2 if layer == "ffn.net.2" else 4
            made[f"{name}.lora_A.weight"] = torch.randn(rank, columns)
            made[f"{name}.lora_B.weight"] = torch.randn(rows, rank)
    return made


def changes(module: VideoModule) -> State:
    """What an adapter adds to each weight."""
    found = {}
    layer: Any
    for name, layer in module.get_submodule("transformer").named_modules():
        for adapter in getattr(layer, "lora_A", {}):
            pair = layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight
            found[name] = (pair * layer.scaling[adapter]).detach()
    return found


def expected(state: State, scale: float = 1.0) -> State:
    return {
        name.removesuffix(".lora_A.weight"): scale
        * state[name.replace("lora_A", "lora_B")]
        @ state[name]
        for name in state
        if "lora_A" in name
    }


def assert_changes(module: VideoModule, wanted: State) -> None:
    found = changes(module)
    assert found.keys() == wanted.keys()
    for name, change in wanted.items():
        torch.testing.assert_close(found[name], change, rtol=1e-4, atol=1e-5)


def original(key: str) -> str:
    """A key by the names of Wan's own code."""
    for ours, theirs in THEIRS.items():
        key = key.replace(ours, theirs)
    return key


def downwards(key: str) -> str:
    return key.replace("lora_A", "lora_down").replace("lora_B", "lora_up")


def flat(key: str) -> str:
    layer, half, end = key.rpartition(".lora")
    return layer.replace(".", "_") + half + end


SPELLINGS: dict[str, Callable[[str], str]] = {
    "diffusers": lambda key: f"transformer.{key}",
    "bare": lambda key: key,
    "peft": lambda key: f"base_model.model.{key}",
    "peft_of_pipeline": lambda key: f"base_model.model.transformer.{key}",
    "peft_named": lambda key: key.replace(".weight", ".default.weight"),
    "comfy_of_diffusers": lambda key: f"diffusion_model.{key}",
    "old_diffusers": lambda key: (
        "transformer." + key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")
    ),
    "kohya_of_diffusers": lambda key: "lora_unet_" + flat(downwards(key)),
    "kohya_half_dotted": lambda key: "lora_unet_" + downwards(key),
    "lycoris": lambda key: "lycoris_" + flat(downwards(key)),
    "lora_transformer": lambda key: "lora_transformer_" + flat(downwards(key)),
    "comfy": lambda key: "diffusion_model." + original(key),
    "comfy_downwards": lambda key: "diffusion_model." + downwards(original(key)),
    "comfy_of_model": lambda key: "model.diffusion_model." + original(key),
    "diffsynth": lambda key: original(key).replace(".weight", ".default.weight"),
    "diffsynth_plain": lambda key: original(key),
    "diffsynth_of_pipe": lambda key: "pipe.dit." + original(key),
    "transformer_of_original": lambda key: "transformer." + original(key),
    "musubi_of_some": lambda key: "lora_unet_" + flat(downwards(original(key))),
    "musubi_half_dotted": lambda key: "lora_unet_" + downwards(original(key)),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_same_pairs_under_any_projects_keys_make_the_same_changes(
    spelling, module, state, tmp_path
) -> None:
    spell = SPELLINGS[spelling]
    save_file({spell(key): weight for key, weight in state.items()}, tmp_path / "a.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.load_lora(tmp_path / "a.safetensors")
    assert_changes(module, expected(state))


@pytest.mark.parametrize(
    "spelling", ["diffusers", "bare", "kohya_of_diffusers", "comfy", "diffsynth", "musubi_of_some"]
)
def test_alphas_scale_their_pairs(spelling, module, state, tmp_path) -> None:
    spell = SPELLINGS[spelling]
    tensors = {spell(key): weight for key, weight in state.items()}
    for key in state:
        if "lora_A" in key:
            module_name = spell(key).split(".lora_")[0]
            tensors[f"{module_name}.alpha"] = torch.tensor(2.0 * len(state[key]))
    save_file(tensors, tmp_path / "a.safetensors")
    module.load_lora(tmp_path / "a.safetensors")
    assert_changes(module, expected(state, 2.0))


def rank_four(state: State) -> State:
    return {key: weight for key, weight in state.items() if "ffn" not in key}


@pytest.mark.parametrize("spelling", ["diffusers", "comfy", "peft"])
@pytest.mark.parametrize("header", [{"lora_alpha": "16", "r": "4"}, {"alpha": "16"}])
def test_an_alpha_of_the_header_counts(spelling, header, module, state, tmp_path) -> None:
    state, spell = rank_four(state), SPELLINGS[spelling]
    tensors = {spell(key): weight for key, weight in state.items()}
    save_file(tensors, tmp_path / "a.safetensors", header)
    module.load_lora(tmp_path / "a.safetensors", weight=0.5)
    assert_changes(module, expected(state, 4.0 * 0.5))


def test_an_alpha_beside_a_file_of_peft_counts(module, state, tmp_path) -> None:
    state = rank_four(state)
    tensors = {f"base_model.model.{key}": weight for key, weight in state.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 12}))
    module.load_lora(tmp_path)
    assert_changes(module, expected(state, 3.0))


def test_an_alpha_that_may_be_in_the_tensors_already_is_said(module, state, tmp_path) -> None:
    tensors = {f"transformer.{key}": weight for key, weight in rank_four(state).items()}
    header = {"ss_network_alpha": "16", "ss_network_dim": "4"}
    save_file(tensors, tmp_path / "a.safetensors", header)
    with pytest.warns(UserWarning, match=r"a\.safetensors tells of an alpha of 16"):
        module.load_lora(tmp_path / "a.safetensors")
    assert_changes(module, expected(rank_four(state)))


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
@pytest.mark.parametrize("spelling", ["diffusers", "old_diffusers", "peft_named", "musubi_of_some"])
def test_a_file_without_the_other_half_of_a_pair_is_refused_by_its_key(
    spelling, half, module, state, tmp_path
) -> None:
    spell = SPELLINGS[spelling]
    missing = f"blocks.1.attn1.to_q.{half}.weight"
    tensors = {spell(key): weight for key, weight in state.items() if key != missing}
    save_file(tensors, tmp_path / "a.safetensors")
    layers = [name for name, _ in module.named_modules()]
    with pytest.raises(ValueError, match=r"a\.safetensors lacks 1 tensors") as refused:
        module.load_lora(tmp_path / "a.safetensors")
    assert spell(missing) in str(refused.value)
    assert [name for name, _ in module.named_modules()] == layers


DROPPED = {  # beside what is used
    "transformer_2": "transformer_2.blocks.0.attn1.to_q.lora_A.weight",
    "text_encoder": "text_encoder.layers.0.to_q.lora_A.weight",
    "dora": "transformer.blocks.0.attn1.to_q.dora_scale",
    "unknown": "transformer.blocks.0.attn1.to_q.lora_mystery",
}


@pytest.mark.parametrize("kind", DROPPED)
def test_a_part_that_nothing_takes_is_refused_by_its_key(kind, module, state, tmp_path) -> None:
    tensors = {f"transformer.{key}": weight for key, weight in state.items()}
    key = DROPPED[kind]
    tensors[key] = torch.randn(4, 24)
    if key.endswith("lora_A.weight"):
        tensors[key.replace("lora_A", "lora_B")] = torch.randn(24, 4)
    save_file(tensors, tmp_path / "a.safetensors")
    layers = [name for name, _ in module.named_modules()]
    with pytest.raises(ValueError, match=r"a\.safetensors") as refused:
        module.load_lora(tmp_path / "a.safetensors")
    assert key.removeprefix("transformer.") in str(refused.value)
    assert module.loras == {}
    assert [name for name, _ in module.named_modules()] == layers


@pytest.mark.parametrize("key", ["blocks.0.norm3.diff", "blocks.0.diff_m", "blocks.1.norm3.diff_b"])
@pytest.mark.parametrize("spelling", ["comfy", "comfy_of_diffusers", "diffusers", "bare"])
def test_a_change_that_is_no_pair_is_left_out_with_a_warning(
    key, spelling, module, state, tmp_path
) -> None:
    spell = SPELLINGS[spelling]
    tensors = {spell(name): weight for name, weight in state.items()}
    save_file({**tensors, spell(key): torch.full((24,), 0.5)}, tmp_path / "a.safetensors")
    with pytest.warns(
        UserWarning, match=r"1 weights of the LoRA .*a\.safetensors are left"
    ) as told:
        module.load_lora(tmp_path / "a.safetensors", name="first")
    assert [spell(key) in str(each.message) for each in told] == [True]
    assert_changes(module, expected(state))
    module.unload_lora()
    save_file({**tensors, spell(key): torch.zeros(24)}, tmp_path / "a.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.load_lora(tmp_path / "a.safetensors", name="second")  # zeros change nothing


@pytest.mark.parametrize(
    "name",
    ["train", "half", "update", "type", "values", "pop", "keys", "lora_A", "weight", "default"]
    + ["base_layer", "transformer", "bias", "v1.5", "two words"],
)
def test_a_file_of_any_name_loads_under_a_name_that_is_free(name, module, state, tmp_path) -> None:
    path = tmp_path / f"{name}.safetensors"
    save_file({f"transformer.{key}": weight for key, weight in state.items()}, path)
    loaded = module.load_lora(path)
    assert loaded.startswith(name.replace(".", "_").replace("lora_A", "loraA"))
    assert module.loras == {loaded: 1.0}
    assert_changes(module, expected(state))
    module.unload_lora(loaded)
    assert changes(module) == {}


def test_of_two_experts_the_one_that_is_meant_takes_the_file(checkpoint, state, tmp_path) -> None:
    module = VideoModule.from_pretrained(checkpoint("two_experts"))
    module.check_placement()
    path = tmp_path / "low.safetensors"
    save_file({original(key): weight for key, weight in state.items()}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.load_lora(path, denoiser="transformer_2")
    assert {n.split(".")[0] for n, _ in module.named_parameters() if "lora_" in n} == {
        "transformer_2"
    }
    with pytest.warns(UserWarning, match=r"goes into transformer alone.*PATH@transformer_2"):
        module.load_lora(path, name="other")
    with pytest.raises(ValueError, match="must be one of transformer, transformer_2"):
        module.check_takes_lora("transformer_3")
