import pytest

from stages.errors import one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("not this.\nbut more of it"), "not this"),
        (OSError("\n gone \n"), "gone"),
        (KeyError(), "KeyError"),
        (ValueError("  "), "ValueError"),
    ],
)
def test_an_error_of_another_library_is_one_line_without_a_full_stop(error, line):
    assert one_line(error) == line
