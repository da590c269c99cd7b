"""The one exception a user is meant to see."""


class BadInput(ValueError):
    """Something the user gave does not work.

    Its text is one sentence that names what is wrong and where, and says what
    to do. Notebooks and the runner show that sentence and no traceback.
    """
