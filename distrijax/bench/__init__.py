"""What it takes, measured: steps and pictures, one device's share of many, and the same step in diffusers."""
