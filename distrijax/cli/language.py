"""The library's messages in the words of the command line: an argument `patch=4` is an option, `--patch 4`."""

import re
from collections.abc import Sequence

_OTHER_NAMES = {"num_inference_steps": "steps", "num_images_per_prompt": "num-images", "mask_image": "mask"}


def in_options(message: str, names: Sequence[str]) -> str:
    """Return the message with options in place of arguments.

    Many arguments are words of English, such as `data`, so a name counts only where it is used as one.

    Args:
        names: names of the command's options, without dashes in front.
    """
    options = {name.replace("-", "_"): f"--{name}" for name in names}
    options |= {name: f"--{option}" for name, option in _OTHER_NAMES.items() if option in names}
    name = f"({'|'.join(sorted(options, key=len, reverse=True))})"
    underscored = f"({'|'.join(option for option in options if '_' in option)})"
    for pattern, after in (
        (rf"(?<![\w-]){name}=True\b", ""),
        (rf"(?<![\w-]){name}=(?=\S)", " "),
        (rf"(?:^|(?<=[\w+]: )){name}(?=:| is | has )", ""),
        (rf"(?<=\b(?:lower|raise) ){name}(?= to )", ""),
        (rf"(?<=\bset ){name}\b", ""),
        (rf"(?<=\bleave out ){name}\b", ""),
        (rf"(?<![\w-]){underscored}\b", ""),
    ):
        for found in reversed(list(re.finditer(pattern, message))):
            message = message[: found.start()] + options[found[1]] + after + message[found.end() :]
    return re.sub(r"\bset (--)", r"add \1", message)
