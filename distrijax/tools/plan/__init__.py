"""`plan`: what a picture costs on GPUs that may be absent, read from the programs that XLA compiles for them."""
