"""Conversion of prompts to the U-Net's text conditioning."""
