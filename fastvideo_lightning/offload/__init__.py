"""The mechanism of offloading: host bytes, device slots, one copy stream, two events per slot.

Knows torch alone. It never decides what to offload; the callbacks do.
"""
