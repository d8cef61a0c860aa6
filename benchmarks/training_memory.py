"""Memory and time of `sepo train-policy` before its first step, by the number of pairs and by the rule.

    python benchmarks/training_memory.py --scores runs/demo/scores --model runs/demo/oracle/reference

Folders of many pairs are the given shards again and again, as links. Every measurement is a process of its own that
takes four steps. *Own* memory is what the process holds itself (RssAnon); pages of mapped files count apart, for the
system takes them back when it likes, and processes of one host share them. CPU seconds, since machines have other work.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

COUNTS = (10_000, 100_000, 1_000_000)
WAYS: dict[str, dict[str, Any]] = {
    "SePO": {},
    "SePO, dataset-share": {"select": "dataset-share"},
    "simpo": {"objective": "simpo"},
    "dpo": {"objective": "dpo"},
}
STEPS = 4


class Watch(threading.Thread):
    """The most memory that this process had, looked at a hundred times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = {"RssAnon": 0, "RssFile": 0}

    def run(self) -> None:
        while True:
            found = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
            self.most = {name: max(most, int(found[name].split()[0])) for name, most in self.most.items()}
            time.sleep(0.01)


def repeated(scores: Path, folder: Path, pairs: int) -> None:
    """A folder of scores of at least so many pairs."""
    manifest = json.loads((scores / "manifest.json").read_text())
    shards = [(name, manifest["shards"][name]) for name in manifest["files"]]
    files: dict[str, dict[str, object]] = {}
    rows = 0
    while rows < pairs:
        name, checksum = shards[len(files) % len(shards)]
        link = f"scores-{len(files):05d}.parquet"
        (folder / link).symlink_to(scores / name)
        files[link] = checksum
        rows += checksum["rows"]
    manifest |= {"files": [*files], "shards": files, "counts": manifest["counts"] | {"kept": rows}}
    del manifest["checksum"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def measure(model: str, scores: Path, way: str, pairs: int) -> dict[str, float]:
    from stages import train_policy
    from stages.configs import PolicyConfig
    from stages.reporting import Quiet
    from stages.training.loop import fit

    started: dict[str, float] = {}

    def timed(*arguments: Any, **options: Any) -> Any:
        started["cpu"] = time.process_time() - before
        return fit(*arguments, **options)

    with tempfile.TemporaryDirectory() as folder, patch.object(train_policy, "fit", timed):
        large = Path(folder) / "scores"
        large.mkdir()
        repeated(scores.resolve(), large, pairs)
        config = PolicyConfig(
            model=model,
            scores=str(large),
            output_dir=f"{folder}/policy",
            max_steps=STEPS,
            batch_size=32,
            max_tokens_per_device=4096,
            save_steps=0,
            **WAYS[way],
        )
        watch = Watch()
        watch.start()
        before = time.process_time()
        train_policy.run(config, Quiet())
    return {"own": watch.most["RssAnon"] / 1e6, "mapped": watch.most["RssFile"] / 1e6, "seconds": started["cpu"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scores", required=True, type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=int, nargs="*", default=COUNTS)
    parser.add_argument("--ways", nargs="*", default=[*WAYS], choices=WAYS)
    parser.add_argument("--work", action="store_true")
    options = parser.parse_args()
    if options.work:
        print("RESULT " + json.dumps(measure(options.model, options.scores, options.ways[0], options.pairs[0])))
        return
    print(
        "| pairs | rule | own memory, GB | mapped files, GB | CPU seconds before the first step | microseconds a pair |"
    )
    print("|---|---|---|---|---|---|")
    for way in options.ways:
        for pairs in options.pairs:
            command = [sys.executable, str(Path(__file__)), "--scores", str(options.scores), "--model", options.model]
            command += ["--work", "--pairs", str(pairs), "--ways", way]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr[-2000:])
            [line] = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            found = json.loads(line.removeprefix("RESULT "))
            figures = [f"{found[name]:.2f}" for name in ("own", "mapped")]
            figures += [f"{found['seconds']:.1f}", f"{found['seconds'] / pairs * 1e6:.0f}"]
            print(f"| {' | '.join([f'{pairs:,}', way, *figures])} |", flush=True)


if __name__ == "__main__":
    main()
