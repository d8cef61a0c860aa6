from stages.currency import Dropped, Message, Pair, TokenPair

__all__ = ["Dropped", "Message", "Pair", "TokenPair"]
