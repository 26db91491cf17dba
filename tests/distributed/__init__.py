"""Tests with several processes: on the CPU by gloo, on GPUs by NCCL where there are two or more."""
