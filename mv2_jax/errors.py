"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """Something a person gave cannot be used: a prompt, a file, a number, a folder of weights.

    The message is one line for that person: what, where, and what to do. `mv2` prints it alone,
    without a traceback, and exits with code 2.
    """
