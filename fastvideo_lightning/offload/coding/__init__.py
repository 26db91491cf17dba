"""Weights in fewer bytes, without loss.

Read `exponents` (the code, in plain torch), `kernel` (its decoding by a GPU), then `coded` (what of
a unit is coded). `compression` codes units, and `streams` brings them into slots.
"""
