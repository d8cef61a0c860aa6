"""Optional libraries: whether they are here, and how to get them."""

from importlib.util import find_spec

from stages.errors import SepoError


def refuse_without(library: str, purpose: str, extra: str | None) -> None:
    """Stop, before a model loads, where a library is missing; `extra` of this package brings it, if one does."""
    if find_spec(library) is None:
        wanted = f"'sepo[{extra}]'" if extra else library
        raise SepoError(f"{purpose} needs {library}, which is not installed", hint=f"pip install {wanted}")
