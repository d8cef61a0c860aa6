"""Command lines of `sepo`, one after another, in processes that hold every model together: `python -m tests.together FOLDER`.

`FOLDER/commands.json` is their list. The second process draws other tokens than the first, as one whose device rounds
otherwise would now and then; `FOLDER/written.json` is what it wrote in FOLDER/two.
"""

import json
import os
import sys
from pathlib import Path

from sepo_cli.main import main
from stages.logprobs import decode


class Written:
    """The names of files of a folder that its process wrote, and of temporary ones what they became."""

    def __init__(self, folder):
        self.folder, self.names = os.path.realpath(folder), set()

    def __call__(self, event, arguments):
        if event == "os.rename":
            path = arguments[1]
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            path = arguments[0]
        else:
            return
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(f"{self.folder}{os.sep}"):
            name = os.path.basename(path)
            if not name.endswith(".tmp") and not os.path.isdir(path):
                self.names.add(name)


def draw_others(logits_RV, *how):
    """Tokens that are far from those that the logits make likely."""
    return DRAW(-logits_RV, *how)


def run(arguments):
    sys.argv = ["sepo", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    folder, second = Path(sys.argv[1]), os.environ["RANK"] == "1"
    commands, written, DRAW = json.loads((folder / "commands.json").read_text()), Written(folder / "two"), decode.draw
    if second:
        decode.draw = draw_others
        sys.addaudithook(written)
    for command in commands:
        run(command)
    if second:
        (folder / "written.json").write_text(json.dumps(sorted(written.names)))
