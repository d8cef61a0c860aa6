import json

import pytest
import tokenizers

from stages.errors import SepoError, borrowed, one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("not this.\nbut more of it"), "not this"),
        (OSError("\n gone \n"), "gone"),
        (KeyError(), "KeyError"),
        (ValueError("  "), "ValueError"),
        (KeyError("hidden_size"), "KeyError 'hidden_size'"),
        (
            ValueError("Validation error for field 'x':\n    TypeError: no number"),
            "Validation error for field 'x': TypeError: no number",
        ),
        (ValueError("a" * 9999), "a" * 397 + "..."),
    ],
)
def test_an_error_of_another_library_is_one_line_without_a_full_stop(error, line):
    assert one_line(error) == line


class OneOfTheirOwnError(Exception):
    """No list of exceptions knows it."""


@pytest.mark.parametrize("error", [OneOfTheirOwnError("no"), RecursionError("no"), MemoryError("no"), KeyError("no")])
def test_whatever_another_library_raises_is_one_line(error):
    with pytest.raises(SepoError, match=r"^cannot load x: .*no") as caught, borrowed("cannot load x", hint="do"):
        raise error
    assert caught.value.hint == "do"
    assert caught.value.__cause__ is error


def test_a_panic_of_rust_is_one_line():
    broken = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    text = json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []}, "normalizer": broken})
    with pytest.raises(SepoError, match=r"^cannot read: .+") as caught, borrowed("cannot read", hint="do"):
        tokenizers.Tokenizer.from_str(text)
    assert not isinstance(caught.value.__cause__, Exception)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), SepoError("ours", hint="kept")])
def test_what_is_no_fault_of_a_library_passes_its_border(error):
    with pytest.raises(type(error)) as caught, borrowed("cannot load x", hint="do"):
        raise error
    assert caught.value is error
