"""A small artificial language in which the true reward of every word is known.

A prompt names two or three nouns; a response is one to four sentences about them. Frames have slots, and a slot holds
a neutral word half of the time, else a good or a bad one, whatever else the response says. Both responses of a pair
come from this one distribution; only the label looks at the planted rewards::

    prompt     tell me about the river , the goat and the lamp .
    chosen     the splendid goat follows the river .             +2
    rejected   the lamp is shabby and guards the goat .          -1
    P(this order) = sigmoid(2 - -1) = 0.95

Good and bad mirror each other, so reward says nothing about length. What the words are is known to no model: a
tokenizer gives each an id of its own. `draw_truth` has other rewards for the same texts.
"""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.errors import SepoError, one_line
from stages.store.files import MOST_JSON_BYTES, read_regular
from stages.store.shape import parse_json


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TRUTH: Final = "truth.json"
NOUNS: Final = _words(
    "baker bird boat castle cat cloud dog farmer field forest garden goat "
    "horse house lake lamp market painter river road sailor tower wagon wolf"
)
VERBS: Final = _words("draws finds follows guards hears likes meets paints remembers sees")
NEUTRAL: Final = _words("big brown distant early green large little low narrow old plain round")
_PLANTED: Final = {
    2.0: "brilliant delightful splendid wonderful",
    1.0: "cheerful decent pleasant tidy",
    -1.0: "dull noisy shabby stale",
    -2.0: "awful dreadful hateful vile",
}
REWARDS: Final[dict[str, float]] = {word: reward for reward, words in _PLANTED.items() for word in words.split()}
"""planted reward of a word; a word that is not here has none"""
GOOD: Final = tuple(word for word, reward in REWARDS.items() if reward > 0)
BAD: Final = tuple(word for word, reward in REWARDS.items() if reward < 0)


class Truth(NamedTuple):
    """What a text is worth."""

    rewards: Mapping[str, float]
    """of a word; one that is not here has none"""
    turned_by: frozenset[str] = frozenset()
    """words after which rewards count with the other sign until the sentence ends"""

    def of_words(self, words: Sequence[str]) -> list[float]:
        """The reward of each word where it stands, which depends on the words before it alone."""
        found, sign = [], 1.0
        for word in words:
            found.append(sign * self.rewards.get(word, 0.0))
            sign = 1.0 if word == _STOP else -1.0 if word in self.turned_by else sign
        return found


LEXICAL: Final = Truth(REWARDS)
_STOP: Final = "."
_OPENERS: Final = ("describe", "say something of", "tell me about", "write about")
_FRAMES: Final = (
    "the SLOT NOUN VERB the NOUN .",
    "a NOUN VERB the SLOT NOUN .",
    "the NOUN is SLOT and VERB the NOUN .",
    "the SLOT NOUN is near the SLOT NOUN .",
    "today the NOUN VERB the NOUN .",
)
_FILLINGS: Final = (NEUTRAL, NEUTRAL, GOOD, BAD)
_MOST_SENTENCES: Final = 4
_DENSE_SPREAD: Final = 0.55
_SPARSE: Final = 4.0
_TEST_SHARE: Final = 0.1
_OPEN_CLASSES: Final = {"NOUN", "VERB", "SLOT"}
_FUNCTION_WORDS: Final = {word for text in (*_OPENERS, *_FRAMES) for word in text.split()} - _OPEN_CLASSES | {","}

VOCABULARY: Final[tuple[str, ...]] = (*sorted(_FUNCTION_WORDS), *NOUNS, *VERBS, *NEUTRAL, *REWARDS)
"""every word that a prompt or a response can hold, once, in an order that never changes"""


def draw_truth(kind: str, seed: int) -> Truth:
    """The rewards of a language: those above, or others.

    contextual: a planted word counts with the other sign where a verb or "near" came before it in its sentence, as two
    of five do; what a word is worth at its place, neither it nor the word before it tells. dense: every noun, verb,
    neutral and planted word has a reward, N(0, 0.55^2). sparse: one planted word has 4, another one -4.
    """
    rng = random.Random(f"{seed} rewards")
    if kind == "lexical":
        return LEXICAL
    if kind == "contextual":
        return Truth(REWARDS, frozenset({*VERBS, "near"}))
    if kind == "dense":
        return Truth({word: rng.gauss(0.0, _DENSE_SPREAD) for word in (*NOUNS, *VERBS, *NEUTRAL, *REWARDS)})
    if kind == "sparse":
        return Truth(dict(zip(rng.sample(list(REWARDS), 2), (_SPARSE, -_SPARSE), strict=True)))
    raise ValueError(f"there are no {kind} rewards")


def true_reward(text: str, truth: Truth = LEXICAL) -> float:
    """The sum of the rewards of the words between blanks; a word that has none counts 0."""
    return sum(truth.of_words(text.split()))


def truth_as_json(truth: Truth) -> dict[str, Any]:
    """For truth.json: word -> reward; where a word turns the others, both parts by name."""
    rewards = dict(truth.rewards)
    return {"rewards": rewards, "turned_by": sorted(truth.turned_by)} if truth.turned_by else rewards


def load_truth(demo: Path) -> Truth:
    """What texts are worth, as a folder of `sepo make-demo` has it."""
    try:
        found = parse_json(read_regular(demo / TRUTH, MOST_JSON_BYTES))
        turned_by = found.get("turned_by", [])
        rewards = found["rewards"] if turned_by else found
        return Truth({str(word): float(reward) for word, reward in rewards.items()}, frozenset(map(str, turned_by)))
    except (OSError, LookupError, ValueError, AttributeError, TypeError) as error:
        raise SepoError(f"cannot read {demo / TRUTH}: {one_line(error)}", hint="run `sepo make-demo` again") from error


def preference_probability(first: str, second: str, truth: Truth = LEXICAL, noise: float = 0.0) -> float:
    """The probability that `first` is chosen over `second`: by Bradley-Terry, or by a coin in a share `noise`."""
    by_reward = 1.0 / (1.0 + math.exp(true_reward(second, truth) - true_reward(first, truth)))
    return (1.0 - noise) * by_reward + noise / 2


def draw_splits(
    train_pairs: int, test_pairs: int, seed: int, truth: Truth = LEXICAL, noise: float = 0.0
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The demo's train and test rows, with the keys ``prompt``, ``chosen`` and ``rejected``.

    No prompt is in both. Each split is decided by the seed alone, so that one does not change with the other's size,
    and a longer one begins with the rows of a shorter one.
    """
    prompts = list(_prompts())
    random.Random(seed).shuffle(prompts)
    held_out = round(_TEST_SHARE * len(prompts))
    train = draw_pairs(prompts[held_out:], train_pairs, random.Random(f"{seed} train"), truth, noise)
    test = draw_pairs(prompts[:held_out], test_pairs, random.Random(f"{seed} test"), truth, noise)
    return train, test


def draw_pairs(
    prompts: Sequence[tuple[str, ...]], count: int, rng: random.Random, truth: Truth = LEXICAL, noise: float = 0.0
) -> list[dict[str, str]]:
    """`count` labelled pairs for the prompts (an opener and nouns) in turn, from the first again when they run out."""
    label = partial(preference_probability, truth=truth, noise=noise)
    return [_draw_pair(*prompt, rng=rng, label=label) for prompt in itertools.islice(itertools.cycle(prompts), count)]


def _prompts() -> list[tuple[str, ...]]:
    """Every opener with every order of two or three nouns, about fifty thousand."""
    orders = [*itertools.permutations(NOUNS, 2), *itertools.permutations(NOUNS, 3)]
    return [(opener, *nouns) for opener in _OPENERS for nouns in orders]


def _draw_pair(opener: str, *nouns: str, rng: random.Random, label: Callable[[str, str], float]) -> dict[str, str]:
    first = second = ""
    while first == second:
        first, second = _draw_response(nouns, rng), _draw_response(nouns, rng)
    if rng.random() >= label(first, second):
        first, second = second, first
    *early, last = [f"the {noun}" for noun in nouns]
    return {"prompt": f"{opener} {' , '.join(early)} and {last} .", "chosen": first, "rejected": second}


def _draw_response(nouns: Sequence[str], rng: random.Random) -> str:
    return " ".join(_draw_sentence(nouns, rng) for _ in range(rng.randint(1, _MOST_SENTENCES)))


def _draw_sentence(nouns: Sequence[str], rng: random.Random) -> str:
    subject_and_object = iter(rng.sample(nouns, 2))
    words = []
    for part in rng.choice(_FRAMES).split():
        if part == "NOUN":
            words.append(next(subject_and_object))
        elif part == "VERB":
            words.append(rng.choice(VERBS))
        elif part == "SLOT":
            words.append(rng.choice(rng.choice(_FILLINGS)))
        else:
            words.append(part)
    return " ".join(words)
