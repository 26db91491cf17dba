"""Measurements beside the alternatives; each script writes into ``benchmarks/results``."""
