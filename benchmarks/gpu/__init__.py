"""The stages of `examples/measure_gpu.py`, and the tables that are made of their results."""
