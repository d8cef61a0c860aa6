"""What transformers says of a tokenizer while it loads it, such as that its ids will be wrong: shown, not silenced."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def overheard() -> Iterator[list[str]]:
    """The warnings of transformers in the block, each once, whatever its verbosity is; filled as they come."""
    said: list[str] = []
    logger = logging.getLogger("transformers")
    level, handlers, propagate = logger.level, logger.handlers, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.handlers, logger.propagate = [_Ear(said)], False
    try:
        yield said
    finally:
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate


class _Ear(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text not in self._said:
            self._said.append(text)
