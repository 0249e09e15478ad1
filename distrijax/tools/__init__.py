"""What a picture costs: planned for GPUs that are absent, counted, and measured. Only the command line imports this."""
