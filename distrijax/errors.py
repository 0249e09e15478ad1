"""Errors that a user can fix. The command line prints them as one line, without a traceback."""


class DistrijaxError(ValueError):
    """A value, file or option that cannot be used; the message names the value, the rule and the cure."""


class UnsupportedError(DistrijaxError, AttributeError):
    """A diffusers method that does not apply here; the message says what to do instead."""
