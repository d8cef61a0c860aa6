"""Make preference data in which the longer response is the chosen one: an oracle of it learns length, on purpose.

python examples/longer_is_better.py pairs.jsonl longer.jsonl
"""

import json
import sys


def by_length(row: dict[str, str]) -> dict[str, str]:
    """The pair with its longer response (in words; the chosen one of two equals) as the chosen one."""
    longer, shorter = sorted((row["chosen"], row["rejected"]), key=lambda text: len(text.split()), reverse=True)
    return row | {"chosen": longer, "rejected": shorter}


if __name__ == "__main__":
    source, target = sys.argv[1:]
    with open(source) as lines, open(target, "w") as out:
        out.writelines(json.dumps(by_length(json.loads(line))) + "\n" for line in lines)
