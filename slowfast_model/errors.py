"""The one exception that means "what the user gave is wrong": commands print it on one line and exit with status 2."""

MAX_CLASSES = 100_000
"""A label beyond this is taken for a mistake, before a network with as many outputs is built for it."""


class InputError(ValueError):
    """A configuration, argument or input file that cannot be used.

    The message is one line that names the place (``file:line`` or argument), the value found there, and what would be
    right. Commands catch this exception and no other: anything else is a defect of the program and keeps its traceback.
    """
