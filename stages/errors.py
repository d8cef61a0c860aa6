"""The one exception that means "the user can fix this"."""


class SepoError(Exception):
    """A user's mistake: one line that holds the value, the constraint and the remedy.

    Raised anywhere in `stages`, rendered once in `sepo_cli`. Anything else that escapes a stage is a bug and keeps its
    traceback.

    Args:
        message: one line without a trailing full stop, such as ``chosen_ratio must be in (0, 1], got 1.5``.
        hint: one line saying what to do next; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def one_line(error: BaseException) -> str:
    """The first line of what another library's error says, or else its name, without a trailing full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
