"""Optional libraries: whether they are here, and how to get them."""

from importlib.util import find_spec

from stages.errors import SepoError


def refuse_without(library: str, purpose: str, extra: str) -> None:
    """Stop, before a model loads, where an optional library is missing.

    Raises:
        SepoError: naming the extra of this package that brings it.
    """
    if find_spec(library) is None:
        raise SepoError(f"{purpose} needs {library}, which is not installed", hint=f"pip install 'sepo[{extra}]'")
