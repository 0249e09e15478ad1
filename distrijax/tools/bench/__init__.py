"""`bench`: denoising steps, one device's share of them and whole pictures, measured on this machine."""
