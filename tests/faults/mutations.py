"""One value of a JSON file made wrong, file after file: every place of it, by every kind of wrong value, sampled evenly."""

import json
import random
from pathlib import Path

DEEP = 2000
WRONG = {
    "null": None,
    "true": True,
    "minus one": -1,
    "zero": 0,
    "three": 3,
    "huge": 10**30,
    "infinite": float("inf"),
    "half": 0.5,
    "no text": "",
    "a text": "text",
    "a formula": "$x\\y",
    "a path": "../../etc/passwd",
    "half a character": "\ud800",
    "control": "\x1b[31m\n",
    "long": "a" * 5000,
    "no list": [],
    "list of null": [None],
    "no object": {},
    "object": {"a": {"b": [1]}},
    "missing": ...,
    "deep": ...,
}
WHOLE = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "object": b"{}",
    "number": b"1",
    "text": b'"x"',
    "nan": b"NaN",
    "deep": b"[" * DEEP + b"]" * DEEP,
    "not utf-8": b"\xff\xfe{}",
    "binary": b"\0\1\2",
    "two": b"{}{}",
}


def mutate(path: Path, number: int) -> str:
    """Make one value of a JSON file wrong, or its bytes; the number says which and how. Returns that in words."""
    rng = random.Random(number)
    data = path.read_bytes()
    if number % 10 == 9:
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] if number % 20 == 9 else data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        return f"{path.name}: byte {at}"
    document = json.loads(data)
    places = list(_places(document))
    *above, key = places[number * 7 % len(places)] if len(places) < 60 else rng.choice(places)
    holder = document
    for each in above:
        holder = holder[each]
    how = rng.choice(list(WRONG))
    if how == "missing":
        del holder[key]
    else:
        holder[key] = "DEEP" if how == "deep" else WRONG[how]
    text = json.dumps(document).replace('"DEEP"', "[" * DEEP + "]" * DEEP) if how == "deep" else json.dumps(document)
    path.write_text(text)
    return f"{path.name}: {[*above, key]} is {how}"


def _places(value, above=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:40]:
        yield (*above, key)
        if len(above) < 3:
            yield from _places(inner, (*above, key))
