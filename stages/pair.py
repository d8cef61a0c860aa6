"""`sepo pair`: preference pairs of a model's own samples, the best against the worst answer to each prompt.

    sepo generate --samples 8 --> answers --> a reward for each --> best and worst --> NAME.jsonl, a data set

All samples answer the same first prompt of a question. What a model was asked later, after an answer of its own, no
other sample was asked: later turns are left out, and counted.
"""

import itertools
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from stages.benchmarks.ifeval_verifier import open_verifier
from stages.configs import PairConfig
from stages.data.read import dataset_hash
from stages.data.template_arguments import KWARGS, given_arguments
from stages.devices.processes import ALONE, Team, join_processes, refuse_several
from stages.errors import SepoError
from stages.generation.best_and_worst import CUT, Chosen, PairCounts, Reward, best_and_worst, by_prompt, usable
from stages.generation.rankings import (
    GivenRanking,
    OracleRanking,
    Ranking,
    Verifier,
    VerifierRanking,
    load_verifier,
    read_rewards,
    strays,
)
from stages.models.folders import usable_length
from stages.models.loading import refuse_unloadable
from stages.models.scorer import Models, Scorer, find_models, scorer_inputs
from stages.models.tensor_parallel import who_holds
from stages.reporting import Reporter, Summary, counted, printable
from stages.store.answers import Answer, AnswerFolder, open_answers
from stages.store.files import hash_file
from stages.store.manifest import Input, made_just_now
from stages.store.pairs import claim_pairs, manifest_of, write_pairs
from stages.tokens.encode import Encoder
from stages.types import Tokenizer

STAGE: Final = "pair"
ANSWERS_AT_ONCE: Final = 512
"""that are ranked together"""
IFEVAL: Final = {"ifeval": "strict", "ifeval-loose": "loose"}
"""verifiers by name, and which of IFEval's two readings each takes"""
MORE: Final = "sample more answers to each prompt"


class PairJob(NamedTuple):
    """What is known before the output is claimed."""

    config: PairConfig
    reporter: Reporter
    device: torch.device
    answers: AnswerFolder
    inputs: dict[str, Input]
    oracle: tuple[Models, Tokenizer] | None
    team: Team


@dataclass
class Tally:
    """What is said of the pairs at the end: sums over them."""

    counts: PairCounts = field(default_factory=PairCounts)
    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, pair: Chosen) -> None:
        self.counts.kept += 1
        self.sums["chosen_reward"] += pair.chosen_reward
        self.sums["rejected_reward"] += pair.rejected_reward
        self.sums["chosen_characters"] += len(pair.chosen.text)
        self.sums["rejected_characters"] += len(pair.rejected.text)

    def means(self) -> dict[str, float]:
        """Over the pairs; at least one is there."""
        return {name: total / self.counts.kept for name, total in self.sums.items()}


def run(config: PairConfig, reporter: Reporter) -> Summary:
    """Rank what is usable, and write a pair for each prompt that has one."""
    started = time.monotonic()
    job = _check(config, reporter)
    output, identity, found = job.team.agreed(lambda: claim_pairs(STAGE, job.config, job.inputs))
    if found is not None:
        return Summary(f"pairs in {output}", [("already finished", str(manifest_of(output)))], fresh=False)
    tally = Tally()
    ranking = _load(job, tally.counts)

    def manifest() -> dict[str, Any]:
        made_by = made_just_now(str(job.device), started)
        return identity | {"counts": tally.counts.as_json(), "results": tally.means(), "made_by": made_by}

    rows = _compute(job, ranking, tally)
    if job.team.first:
        write_pairs(output, rows, manifest)
    else:
        deque(rows, maxlen=0)
    return _summarise(job, output, tally)


def _check(config: PairConfig, reporter: Reporter) -> PairJob:
    """The answers, and whatever ranks them."""
    accelerator = join_processes()
    team = who_holds(config.device_map, accelerator)
    if team is ALONE:
        refuse_several(accelerator, STAGE)
    answers = open_answers(config.answers)
    config = replace(config, model=_model(config, answers))
    inputs = {"answers": Input(config.answers, str(answers.manifest["fingerprint"]), data=True)}
    oracle = None
    if config.verifier:
        inputs |= _code_of(config.verifier)
    elif config.rewards:
        inputs["rewards"] = Input(config.rewards, dataset_hash(config.rewards), data=True)
    else:
        oracle = find_models(config, reporter)
        refuse_unloadable(config, accelerator, oracle[0].named.values())
        inputs |= scorer_inputs(*oracle)
    return PairJob(config, reporter, accelerator.device, answers, inputs, oracle, team)


def _model(config: PairConfig, answers: AnswerFolder) -> str:
    names = ", ".join(map(printable, answers.models))
    if config.model is None and len(answers.models) > 1:
        raise SepoError(f"{config.answers} has answers of {names}", hint="say whose make the pairs: --model NAME")
    if config.model is not None and config.model not in answers.models:
        raise SepoError(f"{config.answers} has no answers of {config.model}", hint=f"it has those of {names}")
    return config.model or answers.models[0]


def _code_of(verifier: str) -> dict[str, Input]:
    """What decides what a verifier says, as far as that is known: a package's version, or the file of a module."""
    if verifier in IFEVAL:
        open_verifier()
        return {"verifier": Input("lm_eval", version("lm_eval"))}
    load_verifier(verifier, [*IFEVAL])
    file = getattr(sys.modules[verifier.partition(":")[0]], "__file__", None)
    return {"verifier": Input(file, hash_file(Path(file)))} if file else {}


def _verifier(name: str) -> Verifier:
    if name not in IFEVAL:
        return load_verifier(name, [*IFEVAL])
    verify = open_verifier()

    def share(row: dict[str, Any], answer: str) -> float:
        """Of the prompt's instructions, those that the answer follows."""
        followed: list[bool] = getattr(verify(row, answer), IFEVAL[name])
        return sum(followed) / len(followed)

    return share


def _load(job: PairJob, counts: PairCounts) -> Ranking:
    config = job.config
    if config.verifier:
        return VerifierRanking(config.verifier, _verifier(config.verifier))
    if config.rewards:
        return GivenRanking(_given(job, config.rewards, counts))
    assert job.oracle is not None
    models, tokenizer = job.oracle
    trust = config.trust_remote_code
    max_length = usable_length(models.named.values(), config.max_length, trust_remote_code=trust, reporter=job.reporter)
    scorer = Scorer(models, config, job.device, None, job.reporter)
    encoder = Encoder(tokenizer, _template_arguments(job))
    return OracleRanking(scorer, encoder, max_length, per_token=config.per_token)


def _given(job: PairJob, file: str, counts: PairCounts) -> dict[tuple[str, int], float]:
    """The rewards of a file; those that are of no answer are counted."""
    known = read_rewards(file, job.config.reward_column)
    counts.rewards, counts.strays = len(known), strays(known, job.answers.keys(str(job.config.model)))
    said = [f"{count:,} of {len(known):,} rewards are {reason}" for reason, count in counts.strays.most_common()]
    if known and counts.strays.total() == len(known):
        question, sample = next(iter(job.answers.keys(str(job.config.model))))
        raise SepoError(
            f"{file} rewards no answer of {job.config.answers}: {'; '.join(said)}",
            hint=f"its rows name answers, such as question_id {printable(question)[:80]!r}, sample {sample}",
        )
    for text in said:
        job.reporter.warn(f"{file}: {text}")
    return known


def _template_arguments(job: PairJob) -> dict[str, Any]:
    """What the chat template was given when the answers were generated."""
    return given_arguments(job.answers.manifest.get("settings", {}).get(KWARGS))


def _compute(job: PairJob, ranking: Ranking, tally: Tally) -> Iterator[dict[str, Any]]:
    """The rows of the data set, each prompt's when it is ranked; a few prompts are in memory at a time."""
    counts, config = tally.counts, job.config
    model, arguments = str(config.model), _template_arguments(job)
    # In a column of each row, which goes to the template wherever the pairs are read.
    more = {KWARGS: arguments} if arguments else {}
    with job.reporter.task("rank", job.answers.count(model), "answers") as task:
        for prompts in _several(by_prompt(job.answers.answers(model))):
            candidates = [usable(answers, counts, keep_cut=config.keep_cut) for answers in prompts]
            rewards = iter(ranking.rewards([*itertools.chain(*candidates)]))
            for answers in candidates:
                for row in _pair(answers, list(itertools.islice(rewards, len(answers))), config.min_gap, tally):
                    yield row | more
            number = sum(map(len, prompts))
            counts.prompts += len(prompts)
            counts.answers += number
            task.advance(number)
    job.reporter.say(str(counts))
    if not counts.kept:
        many_cut = counts.left_out[CUT] > counts.answers / 2
        hint = "raise --max-new-tokens of `sepo generate`, or take what is cut with --keep-cut" if many_cut else MORE
        raise SepoError(f"{config.answers}: no pair is left: {counts}", hint=hint)


def _several(prompts: Iterator[list[Answer]]) -> Iterator[list[list[Answer]]]:
    """The answers to some prompts together."""
    batch: list[list[Answer]] = []
    for answers in prompts:
        batch.append(answers)
        if sum(map(len, batch)) >= ANSWERS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _pair(answers: list[Answer], rewards: list[Reward], min_gap: float, tally: Tally) -> Iterator[dict[str, Any]]:
    """The row of one prompt, if it has one; what has none is counted."""
    known: list[tuple[Answer, float]] = []
    for answer, reward in zip(answers, rewards, strict=True):
        if isinstance(reward, str):
            tally.counts.left_out[reward] += 1
        else:
            known.append((answer, reward))
    pair = best_and_worst(known, min_gap)
    if isinstance(pair, str):
        tally.counts.dropped[pair] += 1
    else:
        tally.add(pair)
        yield pair.as_row(known)


def _summarise(job: PairJob, output: Path, tally: Tally) -> Summary:
    counts, means = tally.counts, tally.means()
    best, worst = means["chosen_reward"], means["rejected_reward"]
    rows = [
        ("pairs", f"{counts.kept:,} of {counts.prompts:,} prompts"),
        *((f"no pair: {reason}", counted(count, "prompt")) for reason, count in counts.dropped.most_common()),
        *((f"left out: {reason}", counted(count, "answer")) for reason, count in counts.left_out.most_common()),
        *((f"left out: {reason}", counted(count, "reward")) for reason, count in counts.strays.most_common()),
        ("mean reward", f"chosen {best:.3f}, rejected {worst:.3f}, gap {best - worst:.3f}"),
        (
            "mean length",
            f"chosen {means['chosen_characters']:.0f}, rejected {means['rejected_characters']:.0f} characters",
        ),
        ("record", str(manifest_of(output))),
    ]
    return Summary(f"pairs in {output}", rows)
