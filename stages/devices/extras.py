"""Optional libraries: whether they are here, and how to get them."""

from importlib.util import find_spec

from stages.errors import SepoError


def refuse_without(library: str, purpose: str, extra: str | None) -> None:
    """Stop, before a model loads, where an optional library is missing.

    Args:
        extra: of this package, which brings the library; None if the user has to name it to pip.

    Raises:
        SepoError: naming what to install.
    """
    if find_spec(library) is None:
        wanted = f"'sepo[{extra}]'" if extra else library
        raise SepoError(f"{purpose} needs {library}, which is not installed", hint=f"pip install {wanted}")


def refuse_missing_tracker(name: str) -> None:
    """Make sure that a tracker is installed; every one is a package of its own name.

    Raises:
        SepoError: it is not.
    """
    if name != "none":
        refuse_without(name, f"--report-to {name}", "report" if name == "tensorboard" else None)
