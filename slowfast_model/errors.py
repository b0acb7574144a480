"""The one exception that means "what the user gave is wrong": commands print it on one line and exit with status 2."""


class InputError(ValueError):
    """A configuration, argument or input file that cannot be used.

    The message is one line that names the place (``file:line`` or argument), the value found there, and what would be
    right. Commands catch this exception and no other: anything else is a defect of the program and keeps its traceback.
    """
