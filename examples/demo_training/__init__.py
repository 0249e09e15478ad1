"""Training of the demo model, stage by stage: text encoders, autoencoder, latents, U-Net, decoder, export."""
