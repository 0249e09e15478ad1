"""Measured cost: of steps and pictures, of one device's share of a step, and of the same step in other libraries."""
