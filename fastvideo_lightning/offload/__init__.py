"""The mechanism of offloading: host bytes, device slots, one copy stream, two events per slot.

Knows torch alone. It never decides what to offload; the callbacks do. Read it from the bottom up:
`tensors/`, `host/`, `unit`, `slots`, `streams`, `order`, `engine`, `hooks`, `streaming`;
`distributed/` where there are several GPUs.
"""
