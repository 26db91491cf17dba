import torch

from fastvideo_lightning.offload.host.slab import HostSlab
from fastvideo_lightning.offload.tensors.layout import (
    ALIGNMENT_BYTES,
    SlabLayout,
    TensorSpec,
    empty_host_tensor,
)


def test_tensors_of_any_dtype_shape_and_stride_survive_a_copy_of_the_slab():
    tensors = [
        torch.randn(3, 5),
        torch.randn(7).to(torch.bfloat16),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(6, 4).t(),
        torch.tensor(3, dtype=torch.int64),
        torch.empty(0, 4),
        torch.tensor([True, False]),
    ]
    layout = SlabLayout([TensorSpec.of(tensor) for tensor in tensors])
    slab = HostSlab(layout)
    for view, tensor in zip(slab.views, tensors, strict=True):
        view.copy_(tensor)
    device = torch.zeros(layout.size_bytes + 64, dtype=torch.uint8)
    device[: layout.size_bytes].copy_(slab.buffer)
    for view, tensor in zip(layout.views(device), tensors, strict=True):
        assert torch.equal(view, tensor)
        assert view.stride() == tensor.stride()
        assert view.dtype == tensor.dtype


def test_every_tensor_is_aligned_and_none_overlaps():
    specs = [TensorSpec.contiguous(torch.Size([n]), torch.uint8) for n in (1, 511, 512, 513, 3)]
    layout = SlabLayout(specs)
    ends = [o + s.size_bytes for o, s in zip(layout.offsets, specs, strict=True)]
    assert all(offset % ALIGNMENT_BYTES == 0 for offset in layout.offsets)
    assert all(end <= start for end, start in zip(ends, layout.offsets[1:], strict=False))
    assert layout.size_bytes == ends[-1]


def test_a_weight_that_computes_on_the_cpu_keeps_its_phase():
    memory = torch.arange(300, dtype=torch.float32)
    tensors = [memory[1:5], memory[6:40].view(2, 17), memory[100:101], memory[130:290]]
    specs = [TensorSpec.of(t).at(t.data_ptr()) for t in tensors]
    slab = HostSlab(SlabLayout(specs))
    device = torch.zeros(slab.layout.size_bytes, dtype=torch.uint8)
    for view, copy, spec, tensor in zip(
        slab.views, slab.layout.views(device), specs, tensors, strict=True
    ):
        assert view.data_ptr() % 64 == copy.data_ptr() % 64 == tensor.data_ptr() % 64
        assert empty_host_tensor(spec).data_ptr() % 64 == tensor.data_ptr() % 64
    assert [spec.phase for spec in specs] == [t.data_ptr() % 64 for t in tensors]


def test_a_tensor_with_gaps_becomes_contiguous():
    assert TensorSpec.of(torch.randn(4, 6)[:, ::2]).stride == (3, 1)


def test_a_slab_is_exact_where_a_power_of_two_would_be_half_as_large_again():
    layout = SlabLayout([TensorSpec.contiguous(torch.Size([700_001]), torch.uint8)])
    assert HostSlab(layout).buffer.numel() == 700_001


def test_each_tensor_of_a_slab_is_saved_without_the_rest(tmp_path):
    spec = TensorSpec.contiguous(torch.Size([100_000]), torch.float32)
    slab = HostSlab(SlabLayout([spec, spec]))
    torch.save(slab.views[0], tmp_path / "one.pt")
    assert (tmp_path / "one.pt").stat().st_size < 1.1 * spec.size_bytes
