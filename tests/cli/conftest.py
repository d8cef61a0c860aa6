"""The program, run in this process."""

import sys

import pytest

from sepo_cli.main import main


@pytest.fixture
def sepo(monkeypatch, capsys):
    """Run `sepo` in this process; gives the exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sepo", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run
