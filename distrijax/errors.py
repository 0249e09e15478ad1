"""The error a user can mend. The command line prints it as one line, without a traceback."""


class DistrijaxError(ValueError):
    """A value, file or option that cannot be used; the message names the value, the rule and the cure."""
