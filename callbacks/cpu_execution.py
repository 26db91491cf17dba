"""CPUExecution: a component is computed on the CPU, its tensors cross over."""

import torch
from torch import nn

from fastvideo_lightning.callbacks.placement import Attachment, Placement
from fastvideo_lightning.offload.hooks import hook_calls


class CPUExecution(Placement):
    """Keeps the target's weights on the host and computes it there.

    Inputs are brought to the CPU and results to the device; the device never holds a weight. The
    dtype is the one that the component has in a run on the device. Of a transformers model inside
    of it, which a pipeline may call by itself, inputs are brought alike and results stay.

    Args:
        target: FQN of a component, such as ``"text_encoder"``.
    """

    def place(  # noqa: D102  # see Placement
        self, attachment: Attachment, target: nn.Module, device: torch.device
    ) -> None:
        attachment.stay(torch.device("cpu"), run_device=device, results_to=device)
        for name, part in target.named_children():
            if hasattr(part, "main_input_name"):
                fqn, cpu = f"{self.target}.{name}", torch.device("cpu")
                attachment.handles.extend(hook_calls(part, fqn, inputs_to=cpu))
