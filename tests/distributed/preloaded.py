"""What a server imports once for all ranks of a session, which are forked from it.

Importing computes nothing, so that no thread is lost in a fork, and asks nothing of CUDA.
"""

import distributed.generator_world
import distributed.guidance_claims
import distributed.guidance_script
import distributed.streaming_script
import distributed.video_claims  # noqa: F401
