"""The parts of `examples/quality.py`: what patches over several devices do to a picture."""
