"""CPUExecution: a component is computed on the CPU, its tensors cross over."""

import torch
from torch import nn

from fastvideo_lightning.callbacks.placement import Attachment, Placement, bindings_inside
from fastvideo_lightning.offload.hooks import hook_calls


class CPUExecution(Placement):
    """Keeps the target's weights on the host and computes it there.

    Inputs are brought to the CPU and results to the device; the device never holds a weight. The
    dtype is the one that the component has in a run on the device. Of a transformers model inside
    of it, which a pipeline may call by itself, inputs are brought alike and results stay.

    Args:
        target: FQN of a component, such as ``"text_encoder"``.
    """

    def _place(self, attachment: Attachment, target: nn.Module, device: torch.device) -> None:
        (inside,), _ = bindings_inside(attachment.root, [target])
        attachment.keep(inside, torch.device("cpu"), run_device=device)
        attachment.handles.extend(
            hook_calls(
                target,
                self.target,
                inputs_to=torch.device("cpu"),
                outputs_to=device,
            )
        )
        for name, part in target.named_children():
            if hasattr(part, "main_input_name"):
                fqn, cpu = f"{self.target}.{name}", torch.device("cpu")
                attachment.handles.extend(hook_calls(part, fqn, inputs_to=cpu))
