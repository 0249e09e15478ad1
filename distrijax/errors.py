"""The error a user can mend. The command line prints it as one line, without a traceback."""


class DistrijaxError(ValueError):
    """A value, file or option that cannot be used; the message names the value, the rule and the cure."""


class UnsupportedError(DistrijaxError, AttributeError):
    """A method of diffusers that makes no sense here; the message says what to do instead."""
