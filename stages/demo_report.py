"""`sepo demo-report`: how many planted key tokens a selection found, and a policy's true reward and divergence."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from stages.configs import DemoReportConfig
from stages.demo.language import Truth, load_truth
from stages.demo.model import MOST_TOKENS
from stages.devices.processes import join_processes, refuse_several
from stages.evaluation.evaluator import Candidate, Evaluator, Sampling
from stages.evaluation.figures import sample_ratios
from stages.evaluation.held_out import HeldOut, Prompt, truth_hash
from stages.method.selection import random_keys, select_by_keys, signed
from stages.method.statistics import Ratio, by_cluster
from stages.models.folders import load_tokenizer, model_hash, resolve_model
from stages.models.loading import Loading
from stages.models.named import named_models
from stages.report.evaluation import Column, figure_table, figures_json
from stages.reporting import Reporter, Summary
from stages.store.files import hash_file, write_json, write_text
from stages.store.manifest import Input
from stages.store.run import Run, open_stage
from stages.store.scores import Scores, open_scores
from stages.tokens.dataset import LengthLimit, load_pairs
from stages.tokens.encode import Encoder
from stages.types import Ids, Tokenizer

STAGE: Final = "demo-report"
RATIOS: Final = (0.1, 0.3, 0.5)
KL_TOKENS: Final = 8192
MAX_NEW_TOKENS: Final = 64
RECALL: Final = (
    Column("oracle", "found by the oracle's scores", ".3f"),
    Column("chance", "found by a random selection", ".3f"),
    Column("limit", "most that k allows", ".3f"),
)
GAINS: Final = (
    Column("true_reward", "true reward", "+.2f"),
    Column("true_reward_per_token", "a token", "+.3f"),
    Column("sample_tokens", "tokens", ".1f"),
    Column("sample_kl_per_token", "KL from reference, nats a token", ".4f"),
    Column("sample_ended", "ended by itself", ".3f"),
)


def run(config: DemoReportConfig, reporter: Reporter) -> Summary:
    """Make both tables and write them as report.json and report.md."""
    accelerator = join_processes()
    refuse_several(accelerator, STAGE)
    folders, scores, inputs = _check(config, reporter)
    with open_stage(STAGE, config, inputs) as work:
        if work.finished:
            return work.nothing_to_do("report")
        candidates = _load(config, folders, inputs, reporter)
        truth = load_truth(Path(config.demo))
        recall = _recall(scores, truth, candidates[0].held_out.tokenizer, config.seed)
        policies = _evaluate(config, candidates, truth, accelerator.device, reporter)
        return _write(work, {"recall": recall, "policies": policies}, str(accelerator.device))


def _check(config: DemoReportConfig, reporter: Reporter) -> tuple[dict[str, Path], Scores, dict[str, Input]]:
    """The folders of the models, the reference first, the scores, and all that is read."""
    test = Path(config.demo) / "test.jsonl"
    truth = truth_hash(Path(config.demo))
    scores = open_scores(config.scores)
    reference = resolve_model(config.reference, reporter)
    folders = {"reference": reference} | named_models(config.models, reporter, taken=("reference",))
    inputs = {name: Input(str(folder), model_hash(folder)) for name, folder in folders.items()}
    inputs |= {
        "scores": Input(str(scores.folder), scores.fingerprint),
        "truth": Input(config.demo, truth),
        "dataset": Input(str(test), hash_file(test)),
    }
    return folders, scores, inputs


def _load(
    config: DemoReportConfig, folders: dict[str, Path], inputs: dict[str, Input], reporter: Reporter
) -> list[Candidate]:
    """The models, all with the reference's tokenizer and with the held-out prompts in turn."""
    tokenizer = load_tokenizer(folders["reference"], trust_remote_code=False)
    encoder = Encoder(tokenizer)
    found, counts = load_pairs(inputs["dataset"].name, encoder, LengthLimit(MOST_TOKENS), columns={}, reporter=reporter)
    pairs = [found[number % len(found)] for number in range(config.samples)]
    prompts = [Prompt(number, pair.pair_id, pair.prompt_ids) for number, pair in enumerate(pairs)]
    held_out = HeldOut(tokenizer, encoder, pairs, counts)
    return [Candidate(name, folder, inputs[name].hash, held_out, prompts) for name, folder in folders.items()]


def _recall(scores: Scores, truth: Truth, tokenizer: Tokenizer, seed: int) -> dict[str, dict[str, Any]]:
    """Which share of the planted key tokens was selected, by side and ratio."""

    def rewards(ids: Ids) -> NDArray[np.float64]:
        """One word of the demo is one token."""
        return np.array(truth.of_words(tokenizer.convert_ids_to_tokens(ids.tolist())))

    rows = list(scores.rows())
    planted = {
        "chosen": [rewards(row.pair.chosen_ids) > 0 for row in rows],
        "rejected": [rewards(row.pair.rejected_ids) < 0 for row in rows],
    }
    recall = {}
    for ratio in RATIOS:
        draws = (random_keys(row.scores, seed=seed, pair_id=row.pair.pair_id) for row in rows)
        selected = {
            "oracle": [select_by_keys(signed(row.scores), ratio, ratio) for row in rows],
            "chance": [select_by_keys(draw, ratio, ratio) for draw in draws],
        }
        for place, (side, keys) in enumerate(planted.items()):
            totals = np.array([key.sum() for key in keys])
            ratios = {}
            for name, by_row in selected.items():
                hits = [(key & masks[place]).sum() for key, masks in zip(keys, by_row, strict=True)]
                ratios[name] = Ratio(np.array(hits), totals)
            most = np.minimum(totals, [masks[place].sum() for masks in selected["oracle"]])
            ratios["limit"] = Ratio(most, totals)
            recall[f"{side}, k = {ratio}"] = {"side": side, "ratio": ratio, "figures": figures_json(ratios, seed)}
    return recall


def _evaluate(
    config: DemoReportConfig, candidates: list[Candidate], truth: Truth, device: torch.device, reporter: Reporter
) -> dict[str, Any]:
    """What each policy's samples are worth, in the figures of `sepo evaluate`."""
    sampling = Sampling(MAX_NEW_TOKENS, config.seed)
    loading = Loading(device, reporter)
    evaluator = Evaluator(
        candidates[0], sampling, max_tokens=KL_TOKENS, loading=loading, reporter=reporter, truth=truth
    )
    policies = {}
    for model in candidates:
        samples = evaluator.samples(model)
        ratios = by_cluster(sample_ratios(samples), samples["pair_id"])
        policies[model.name] = {"samples": len(model.prompts), "figures": figures_json(ratios, config.seed)}
    return policies


def _write(work: Run, report: dict[str, Any], device: str) -> Summary:
    samples = report["policies"]["reference"]["samples"]
    gains = f"True reward of {samples:,} sampled responses a policy, held-out prompts (95% bootstrap interval)"
    recall = "Planted key tokens found (recall, 95% bootstrap interval over pairs)"
    tables = (
        figure_table(recall, "response", report["recall"].items(), RECALL),
        figure_table(gains, "policy", report["policies"].items(), GAINS),
    )
    write_json(work.folder / "report.json", report)
    write_text(work.folder / "report.md", "\n".join(table.markdown() for table in tables))
    work.finish(files=["report.json", "report.md"], device=device, results=report)
    return Summary(f"report in {work.folder}", [("written", str(work.folder / "report.md"))], tables=tables)
