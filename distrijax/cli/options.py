"""What several commands take alike."""

DTYPES = ("float32", "bfloat16", "float16")
