"""Kinds of tokens: what a token is by its text alone."""

import unicodedata
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.report.vocabulary import Vocabulary

CLASSES: Final = ("control", "blank", "digits", "punctuation", "stop word", "other")
"""control: special tokens such as the end of turn; digits: numbers of any script; punctuation: also symbols; stop word:
of English; other: also parts of a character"""
_ENGLISH: Final = (
    "a about after all also am an and any are as at be because been before being but by can could d did do does for"
    " from had has have he her here him his how i if in into is it its just ll m me more most my no not of on one only"
    " or other our out over re s she should so some such t than that the their them then there these they this those"
    " to too up us ve very was we were what when where which who why will with would you your yours"
)
_STOP_WORDS: Final = frozenset(_ENGLISH.split())


def classes_of(vocabulary: Vocabulary) -> NDArray[np.int8]:
    """(V,) of each id the index of its class in `CLASSES`."""
    found = np.full(vocabulary.size, CLASSES.index("other"), np.int8)
    for id_, text in enumerate(vocabulary.texts()):
        found[id_] = CLASSES.index("control" if id_ in vocabulary.control else class_of(text))
    return found


def class_of(text: str) -> str:
    """The class of what is no control token."""
    bare = text.strip()
    if not bare:
        return "blank" if text else "other"
    if bare.isnumeric():
        return "digits"
    if all(unicodedata.category(letter)[0] in "PS" and letter != "\ufffd" for letter in bare):
        return "punctuation"
    return "stop word" if bare.lower() in _STOP_WORDS else "other"
