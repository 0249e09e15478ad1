"""Compilation of programs and cooperation of processes."""
