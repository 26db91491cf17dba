"""Compiles a model block by block, so that its blocks can still stream.

A list of alike blocks needs one compilation, and what is compiled runs with whichever weights the
block has at that moment. A model compiled as a whole would take the hooks that bring weights in
for part of its program.
"""

from torch import nn

from fastvideo_lightning.offload.blocks import find_block_lists

# Inductor would time several kernels for one reduction and keep the fastest. They add in different
# orders: the bits would be those of whichever won, in this process and until it compiles again.
OPTIONS = {"deterministic": True}


def compile_blocks(root: nn.Module, fqn: str) -> int:
    """Compile the blocks of one model in place (``nn.Module.compile``) and return their number.

    Nothing is compiled yet: that happens at each kind of block's first call, and again for another
    size of video. What was compiled before, here or in another process, does not change the bits.

    Args:
        root: holds the model.
        fqn: name of the model.

    Raises:
        ValueError: the model has no list of blocks.
    """
    model = root.get_submodule(fqn)
    blocks = [block for found in find_block_lists(model, fqn) for _, block in found.blocks]
    if not blocks:
        raise ValueError(
            f"compile=True compiles block by block, and {fqn} ({type(model).__name__}) has no list "
            "of blocks. Leave compile out."
        )
    for block in blocks:
        block.compile(options=OPTIONS)
    return len(blocks)
