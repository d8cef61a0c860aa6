"""`sepo make-demo`: preference pairs in a language whose token rewards are known, and a tiny model to learn it.

Writes train.jsonl, test.jsonl (other prompts), truth.json (what words are worth), model/, and perhaps a weaker
oracle-model/.
"""

import json
from typing import Final

from stages.configs import DemoConfig
from stages.demo.language import TRUTH, VOCABULARY, draw_splits, draw_truth, truth_as_json
from stages.demo.model import build_demo_model
from stages.reporting import Reporter, Summary, counted
from stages.store.files import write_json, write_text
from stages.store.run import open_stage

STAGE: Final = "make-demo"


def run(config: DemoConfig, reporter: Reporter) -> Summary:
    """Write the demo; the same seed writes the same bytes."""
    with open_stage(STAGE, config, {}) as work:
        if work.finished:
            return work.nothing_to_do("demo")
        truth = draw_truth(config.rewards, config.seed)
        train, test = draw_splits(config.train_pairs, config.test_pairs, config.seed, truth, config.label_noise)
        for name, pairs in (("train.jsonl", train), ("test.jsonl", test)):
            write_text(work.folder / name, "".join(json.dumps(pair) + "\n" for pair in pairs))
        write_json(work.folder / TRUTH, truth_as_json(truth))
        reporter.say(
            f"{counted(len(train), 'pair')} to train on, {len(test):,} with other prompts,"
            f" {len(truth.rewards)} words with a reward"
        )
        build_demo_model(work.folder / "model", VOCABULARY, config.seed)
        rows = [
            ("train pairs", f"{len(train):,} in {work.folder / 'train.jsonl'}"),
            ("test pairs", f"{len(test):,} in {work.folder / 'test.jsonl'}"),
            ("planted rewards", str(work.folder / TRUTH)),
            ("model", str(work.folder / "model")),
        ]
        models = [work.folder / "model"]
        if config.oracle_size == "small":
            models.append(work.folder / "oracle-model")
            # A sixth of the parameters.
            build_demo_model(models[1], VOCABULARY, config.seed, layers=1, width=32)
            rows.append(("weaker model for the oracle", str(models[1])))
        files = ["train.jsonl", "test.jsonl", TRUTH]
        files += [f"{model.name}/{path.name}" for model in models for path in sorted(model.iterdir())]
        work.finish(files=files, device="cpu")
        return Summary(f"demo in {work.folder}", rows)
