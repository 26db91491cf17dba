"""What was measured on GPUs: 480x832, bf16, batch 1, torch 2.11.

The steps are from `benchmarks/streaming.py`: an H200 at commits 020086c and fb4c61c, an H100 at
b54bbb5 and, the times alone, of the prototype. Encoding and the whole videos are from
`benchmarks/stages.py`, decoding from `benchmarks/plan.py`.
"""

import torch

from fastvideo_lightning.plan.predict import WORKSPACE_BYTES

RESIDENT = None
# The benchmarks count what comes on top of what their process held before. Of what a plan counts,
# that leaves out nothing of the resident model, which came first, and of all others the matrix
# library's workspace. The figures below stand as they were measured: the prediction is held against
# them without it.
HELD_BEFORE = WORKSPACE_BYTES

# Card, model, frames, resident blocks or RESIDENT, ms of a step, GB reserved.
STEPS = [
    ("H200", "wan-14b", 1, RESIDENT, 88.9, 29.050),
    ("H200", "wan-14b", 17, RESIDENT, 484.0, 30.344),
    ("H200", "wan-14b", 81, RESIDENT, 3101.8, 34.316),
    ("H200", "wan-14b", 1, 0, 507.2, 2.202),
    ("H200", "wan-14b", 17, 0, 507.4, 3.274),
    ("H200", "wan-14b", 81, 0, 3108.9, 7.468),
    ("H200", "wan-14b", 1, 20, 253.3, 16.30),
    ("H200", "wan-1.3b", 1, RESIDENT, 33.1, 3.246),
    ("H200", "wan-1.3b", 17, RESIDENT, 86.0, 3.699),
    ("H200", "wan-1.3b", 81, RESIDENT, 600.1, 5.450),
    ("H200", "wan-1.3b", 1, 0, 50.4, 0.375),
    ("H200", "wan-1.3b", 17, 0, 87.8, 0.826),
    ("H200", "wan-1.3b", 81, 0, 600.5, 2.573),
    ("H100", "wan-14b", 1, RESIDENT, 97.1, 29.050),
    ("H100", "wan-14b", 17, RESIDENT, 521.3, 30.344),
    ("H100", "wan-14b", 81, RESIDENT, 3302.4, 35.289),
    ("H100", "wan-14b", 1, 0, 541.3, 2.252),
    ("H100", "wan-14b", 17, 0, 544.4, 3.276),
    ("H100", "wan-14b", 81, 0, 3309.3, 7.237),
    ("H100", "wan-14b", 1, 20, 258.3, 16.356),
    ("H100", "wan-14b", 17, 20, 526.5, 17.614),
    ("H100", "wan-14b", 1, 4, 500.6, 5.044),
    ("H100", "wan-14b", 17, 4, 536.7, 6.340),
    ("H100", "wan-1.3b", 17, RESIDENT, 93.7, 3.699),
    ("H100", "wan-1.3b", 81, RESIDENT, 644.5, 5.450),
    ("H100", "wan-1.3b", 1, 0, 52.7, 0.365),
    ("H100", "wan-1.3b", 17, 0, 95.8, 0.816),
    ("H100", "wan-1.3b", 81, 0, 646.3, 2.584),
    ("H100", "wan-1.3b", 17, 15, 94.6, 2.441),
    ("H100", "wan-1.3b", 81, 15, 645.0, 4.190),
]
# Of 14B on the H200 at commit a2cdec2 with three slots: frames, ms of a step, GB reserved.
THREE_SLOTS = [(1, 494.6, 3.61), (17, 493.9, 4.69)]
# Compiled blocks of 1.3B on an H200 at commit a139b96: frames, resident blocks or RESIDENT, whether
# the process compiled within the row (once for a single frame, once for any number of them; later
# rows found it done), ms, GB reserved. Resident at one frame the hosts' times differ too much. The
# last two are from a process that did nothing else; the workspace is taken off them.
COMPILED = [
    (1, RESIDENT, True, None, 3.253),
    (1, 0, False, 50.7, 0.306),
    (17, RESIDENT, True, 63.2, 3.464),
    (17, 0, False, 64.3, 0.549),
    (81, RESIDENT, False, 526.1, 4.318),
    (81, 0, False, 527.2, 1.485),
    (1, 0, True, 50.3, 0.415),
    (81, 0, True, 531.1, 1.556),
]
# Whether a text encoder (UMT5-XXL) was streamed, ms of a prompt, GB reserved; an H100.
ENCODINGS = [(True, 171.4, 1.065), (False, 38.1, 11.618)]
# Card, dtype, frames, whether in tiles, seconds and GB reserved of decoding.
DECODINGS = [
    ("H100", torch.float32, 17, False, 0.684, 11.891),
    ("H100", torch.float32, 81, False, 3.241, 12.969),
    ("H100", torch.float32, 17, True, 1.325, 2.768),
    ("H200", torch.float32, 1, False, 0.0417, 4.895),
    ("H200", torch.float32, 17, False, 0.588, 11.956),
    ("H200", torch.float32, 81, False, 2.786, 13.537),
    ("H200", torch.float32, 17, True, 1.188, 2.766),
    ("H200", torch.float32, 81, True, 5.690, 4.196),
    ("H200", torch.bfloat16, 81, False, 1.829, 7.204),
]
# Frames, whether in tiles, dtype and GB that decoding allocated beside the weights; an H200.
ALLOCATED = [
    (1, False, torch.float32, 3.259),
    (17, False, torch.float32, 9.086),
    (81, False, torch.float32, 9.384),
    (17, True, torch.float32, 1.591),
    (81, True, torch.float32, 1.989),
    (81, False, torch.bfloat16, 4.692),
]
# Frames and GiB that a whole video of Wan 14B reserved: denoiser and text encoder streamed, tiles.
VIDEOS = [(17, 3.88), (81, 7.29)]
