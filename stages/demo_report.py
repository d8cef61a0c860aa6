"""`sepo demo-report`: what the planted truth says about selection, and about the policies it led to.

Because the demo's token rewards are known, two tables can be made that no real data set allows: how many of the
planted key tokens a selection found, and how much true reward a policy gained for how much divergence.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stages.configs import DemoReportConfig
from stages.demo.language import load_rewards
from stages.demo.model import MOST_TOKENS
from stages.devices.processes import join_processes, refuse_several
from stages.evaluation.held_out import truth_hash
from stages.logprobs.divergence import as_pair, response_kl
from stages.logprobs.generate import sample
from stages.logprobs.paths import find_paths
from stages.method.selection import Mask, random_keys, select_by_keys, signed
from stages.method.statistics import Interval, bootstrap_ratio, mean_interval
from stages.models.folders import load_model, load_tokenizer, model_hash, resolve_model
from stages.models.named import named_models
from stages.reporting import Quiet, Reporter, Summary, Table
from stages.store.files import hash_file, write_json, write_text
from stages.store.manifest import Input
from stages.store.run import Run, open_stage
from stages.store.scores import Scores, open_scores
from stages.tokens.dataset import Limit, load_pairs
from stages.tokens.encode import Encoder
from stages.types import Ids

STAGE: Final = "demo-report"
RATIOS: Final = (0.1, 0.3, 0.5)
MAX_NEW_TOKENS: Final = 64
SAMPLE_BATCH: Final = 256
KL_TOKENS: Final = 8192


class Finding(NamedTuple):
    """How many of the planted key tokens a selection found, for one side and ratio."""

    side: str
    ratio: float
    oracle: Interval
    chance: Interval
    limit: float
    """the most that so few selected tokens could find"""


class Gain(NamedTuple):
    """What a policy's samples are worth."""

    name: str
    reward: Interval
    """summed planted reward of a response"""
    reward_per_token: Interval
    length: Interval
    """tokens of a response, without its end of turn"""
    kl: Interval
    """KL from the reference per token, nats, on the policy's own samples"""
    ended: float
    """share of responses that ended by themselves"""


def run(config: DemoReportConfig, reporter: Reporter) -> Summary:
    """Make both tables and write them as report.json and report.md."""
    demo = Path(config.demo)
    truth = truth_hash(demo)
    scores = open_scores(config.scores)
    reference = resolve_model(config.reference, reporter)
    folders = {"reference": reference} | named_models(config.models, reporter, taken=("reference",))
    inputs = {name: Input(str(folder), model_hash(folder)) for name, folder in folders.items()}
    inputs |= {
        "scores": Input(str(scores.folder), scores.fingerprint),
        "truth": Input(str(demo), truth),
        "dataset": Input(str(demo / "test.jsonl"), hash_file(demo / "test.jsonl")),
    }
    with open_stage(STAGE, config, inputs) as work:
        return work.nothing_to_do("report") if work.finished else _report(config, work, folders, scores, reporter)


def _report(
    config: DemoReportConfig, work: Run, folders: dict[str, Path], scores: Scores, reporter: Reporter
) -> Summary:
    demo = Path(config.demo)
    accelerator = join_processes()
    refuse_several(accelerator, STAGE)
    device = accelerator.device
    tokenizer = load_tokenizer(folders["reference"], trust_remote_code=False)
    rewards_V = _reward_of_ids(demo, tokenizer)
    findings = _findings(scores, rewards_V, config.seed, reporter)
    gains = _gains(config, folders, tokenizer, rewards_V, device, reporter)
    tables = (_finding_table(findings), _gain_table(gains, config.samples))
    report = {"findings": [_as_json(f) for f in findings], "policies": [_as_json(g) for g in gains]}
    write_json(work.folder / "report.json", report)
    write_text(work.folder / "report.md", "\n".join(table.markdown() for table in tables))
    work.finish(files=["report.json", "report.md"], device=str(device), results=report)
    return Summary(f"report in {work.folder}", [("written", str(work.folder / "report.md"))], tables=tables)


def _reward_of_ids(demo: Path, tokenizer: Any) -> NDArray[np.float64]:
    """Planted reward of every token id; one word of the demo is one token."""
    rewards_V = np.zeros(len(tokenizer))
    for word, reward in load_rewards(demo).items():
        rewards_V[tokenizer.convert_tokens_to_ids(word)] = reward
    return rewards_V


def _findings(scores: Scores, rewards_V: NDArray[np.float64], seed: int, reporter: Reporter) -> list[Finding]:
    rows = list(scores.rows())
    planted = {
        "chosen": [rewards_V[row.pair.chosen_ids] > 0 for row in rows],
        "rejected": [rewards_V[row.pair.rejected_ids] < 0 for row in rows],
    }
    findings = []
    for ratio in RATIOS:
        by_score = [select_by_keys(signed(row.scores), ratio, ratio) for row in rows]
        draws = [random_keys(row.scores, seed=seed, pair_id=row.pair.pair_id) for row in rows]
        by_chance = [select_by_keys(draw, ratio, ratio) for draw in draws]
        for place, side in enumerate(("chosen", "rejected")):
            oracle, chance = [pair[place] for pair in by_score], [pair[place] for pair in by_chance]
            totals = np.array([key.sum() for key in planted[side]])
            limit = np.minimum(totals, [mask.sum() for mask in oracle]).sum() / totals.sum()
            found, luck = (_recall(planted[side], masks, seed) for masks in (oracle, chance))
            findings.append(Finding(side, ratio, found, luck, float(limit)))
    return findings


def _recall(planted: list[Mask], selected: list[Mask], seed: int) -> Interval:
    """Share of all planted tokens that were selected, with a bootstrap interval over pairs."""
    found = np.array([(key & mask).sum() for key, mask in zip(planted, selected, strict=True)])
    return bootstrap_ratio(found, np.array([key.sum() for key in planted]), seed=seed)


def _gains(
    config: DemoReportConfig,
    folders: dict[str, Path],
    tokenizer: Any,
    rewards_V: NDArray[np.float64],
    device: torch.device,
    reporter: Reporter,
) -> list[Gain]:
    encoder = Encoder(tokenizer)
    source = str(Path(config.demo) / "test.jsonl")
    pairs, _ = load_pairs(source, encoder, Limit(MOST_TOKENS), columns={}, reporter=reporter)
    prompts = [pairs[number % len(pairs)].prompt_ids for number in range(config.samples)]
    reference = load_model(folders["reference"], trust_remote_code=False).to(device)
    gains = []
    with reporter.task("sample", len(folders) * len(prompts), "responses") as task:
        for name, folder in folders.items():
            model = load_model(folder, trust_remote_code=False).to(device)
            answers = sample(
                model,
                prompts,
                end_of_turn=encoder.end_of_turn,
                max_new_tokens=MAX_NEW_TOKENS,
                batch_size=SAMPLE_BATCH,
                seed=config.seed,
                task=task,
            )
            kl = _kl_per_token(model, reference, prompts, answers, device, config.seed)
            gains.append(_gain(name, answers, encoder.end_of_turn, kl, rewards_V, config.seed))
    return gains


def _gain(
    name: str, answers: list[Ids], end_of_turn: int | None, kl: Interval, rewards_V: NDArray[np.float64], seed: int
) -> Gain:
    ended = np.array([answer[-1] == end_of_turn for answer in answers])
    rewards = np.array([rewards_V[answer].sum() for answer in answers])
    lengths = np.array([len(answer) for answer in answers]) - ended
    return Gain(
        name,
        reward=mean_interval(rewards),
        reward_per_token=bootstrap_ratio(rewards, lengths, seed=seed),
        length=mean_interval(lengths),
        kl=kl,
        ended=float(ended.mean()),
    )


def _kl_per_token(
    model: Any, reference: Any, prompts: Sequence[Ids], answers: Sequence[Ids], device: torch.device, seed: int
) -> Interval:
    """Mean KL from the reference over all sampled tokens, with a bootstrap interval over responses."""
    ours, theirs = (find_paths(each, Quiet()) for each in (model, reference))
    pairs = [as_pair(number, *each) for number, each in enumerate(zip(prompts, answers, strict=True))]
    kl_N2 = response_kl(ours, theirs, pairs, max_tokens=KL_TOKENS, device=device, task=Quiet())
    return bootstrap_ratio(kl_N2[:, 0], np.array([len(answer) for answer in answers]), seed=seed)


def _as_json(line: Finding | Gain) -> dict[str, Any]:
    values = line._asdict()
    return {name: value.as_json() if isinstance(value, Interval) else value for name, value in values.items()}


def _finding_table(findings: list[Finding]) -> Table:
    columns = ["response", "k", "found by the oracle's scores", "found by a random selection", "most that k allows"]
    rows = [[f.side, f"{f.ratio}", f"{f.oracle:.3f}", f"{f.chance:.3f}", f"{f.limit:.3f}"] for f in findings]
    return Table("Planted key tokens found (recall, 95% interval over pairs)", columns, rows)


def _gain_table(gains: list[Gain], samples: int) -> Table:
    columns = ["policy", "true reward", "a token", "tokens", "KL from reference, nats a token", "ended"]
    rows = [
        [g.name, f"{g.reward:+.2f}", f"{g.reward_per_token:+.3f}", f"{g.length:.1f}", f"{g.kl:.4f}", f"{g.ended:.1%}"]
        for g in gains
    ]
    return Table(
        f"True reward of {samples:,} sampled responses a policy, held-out prompts (95% interval)", columns, rows
    )
