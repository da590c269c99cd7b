"""The exceptions a user is meant to see."""


class BadInput(ValueError):
    """Something the user gave does not work.

    Its text is one sentence that names what is wrong and where, and says what
    to do. Notebooks and the runner show that sentence and no traceback.
    """


class Stopped(BadInput):
    """A training that cannot go on, or was asked not to; its text also says what is kept of it."""


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
