"""The parts of `examples/quality.py`: how patches on several devices change a picture."""
