"""From prompts to the text conditioning of the U-Net."""
