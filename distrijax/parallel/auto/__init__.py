"""`mode="auto"`: the most exact mode that waits for a small part of a step, chosen without compiling anything."""
