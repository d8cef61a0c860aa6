"""`sepo train-policy`: train a policy on the key tokens of scored pairs.

    u(y) = gamma / |selected| * sum over selected of log pi_theta(y_i | q, y_<i)
    L    = -log sigmoid(u(y_w) - u(y_l) - margin)

(arXiv 2408.13518 Eq. 11.) Reads scores and a model, nothing else: no oracle, no reference, no text.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from stages.configs import PolicyConfig, content_settings
from stages.currency import Example, ScoredPair, longest
from stages.errors import SepoError
from stages.method.losses import sepo
from stages.method.selection import Mask, select_key_tokens, select_random
from stages.model.adapters import base_name
from stages.model.card import write_card
from stages.model.checkpoints import forget_checkpoints
from stages.model.folders import (
    embedding_rows,
    load_tokenizer,
    model_hash,
    resolve_model,
    save_model_into,
    tokenizer_hash,
    vocabulary_hash,
)
from stages.model.loop import fit
from stages.model.lora import make_trainee, refuse_useless_lora
from stages.model.metrics import training_warnings
from stages.model.optimizers import refuse_useless_optimizer
from stages.model.processes import gather_weights, join_processes
from stages.model.quantization import load_trainable
from stages.model.training_mode import refuse_impossible
from stages.reporting import Reporter, Summary
from stages.store.manifest import Input, open_run
from stages.store.scores import Scores, open_scores

STAGE: Final = "train-policy"

Rule = Callable[[ScoredPair], tuple[Mask, Mask]]
"""which tokens of a pair's chosen and rejected response take part"""


def run(config: PolicyConfig, reporter: Reporter) -> Summary:
    """Train the policy and write it as an ordinary model folder.

    Raises:
        SepoError: scores that never finished, a policy that gives ids another meaning, an unusable output folder.
    """
    accelerator = join_processes(config.mixed_precision)
    refuse_impossible(config, accelerator.device)
    scores = open_scores(config.scores)
    model_folder = resolve_model(config.model, reporter)
    tokenizer = load_tokenizer(model_folder, trust_remote_code=config.trust_remote_code)
    _refuse_other_vocabulary(tokenizer, scores, config)
    refuse_useless_optimizer(config, accelerator.device)
    refuse_useless_lora(config, model_folder, keeps_base=False)
    inputs = {
        "model": Input(config.model, model_hash(model_folder)),
        "tokenizer": Input(config.model, tokenizer_hash(tokenizer)),
        "scores": Input(str(scores.folder), scores.fingerprint),
    }
    with accelerator.main_process_first():
        work = open_run(
            Path(config.output_dir),
            STAGE,
            content_settings(config),
            inputs,
            overwrite=config.overwrite,
            # Only the first process clears: the others come when it may have begun.
            resume=config.resume or not accelerator.is_main_process,
        )
    if work.finished:
        forget_checkpoints(work.folder)
        return Summary(f"policy in {work.folder}", [("already finished", str(work.folder / "manifest.json"))], False)
    warnings = _warnings(tokenizer, scores)
    for warning in warnings:
        reporter.warn(warning)
    examples, counts = _examples(scores, rule_of(config), config.max_length, reporter)
    model = load_trainable(model_folder, config, accelerator.device)
    _refuse_unknown_ids(model, examples, config.model)
    trainee = make_trainee(model, config, base_name(config.model, model_folder), reporter)
    last = fit(
        trainee.model,
        examples,
        lambda logps_RW, batch: sepo(logps_RW, batch.weights_RW, gamma=config.gamma, margin=config.margin),
        config,
        phase=config.objective,
        folder=work.folder,
        reporter=reporter,
    )
    warnings += training_warnings(work.folder)
    weights = gather_weights(trainee.model)
    if accelerator.is_main_process:
        files = save_model_into(trainee.finished(merged=config.merge), tokenizer, work.folder, weights)
        write_card(work.folder, config, work.identity["inputs"], counts, last)
        files = [*files, "README.md", "metrics.jsonl"]
        work.finish(files=files, device=str(accelerator.device), counts=counts, results=last, warnings=warnings)
        # Not before: a kill in the middle of it would leave neither a checkpoint nor a finished run.
        forget_checkpoints(work.folder)
    return Summary(f"policy in {work.folder}", _rows(counts, last))


def rule_of(config: PolicyConfig) -> Rule:
    """The selection rule that a configuration names."""
    if config.objective == "simpo":
        return lambda row: (np.ones(len(row.scores.chosen), bool), np.ones(len(row.scores.rejected), bool))
    if config.select == "random":
        return lambda row: select_random(
            row.scores, config.chosen_ratio, config.rejected_ratio, seed=config.seed, pair_id=row.pair.pair_id
        )
    return lambda row: select_key_tokens(row.scores, config.chosen_ratio, config.rejected_ratio)


def _refuse_other_vocabulary(tokenizer: Any, scores: Scores, config: PolicyConfig) -> None:
    theirs = scores.manifest["tokenizer"]
    if vocabulary_hash(tokenizer) == theirs["vocabulary"]:
        return
    sizes = f"{len(tokenizer):,} and {theirs.get('size', 0):,} tokens"
    raise SepoError(
        f"the token->id map of {config.model} is not the one {config.scores} was made with ({sizes})",
        hint="`sepo project-scores` carries scores over to another tokenizer, or score with an oracle of its family",
    )


def _warnings(tokenizer: Any, scores: Scores) -> list[str]:
    if tokenizer_hash(tokenizer) == scores.manifest["tokenizer"].get("hash"):
        return []
    return [
        "the policy's special tokens or chat template are not those that the scored text was rendered with; "
        "it is trained on the text as it was scored"
    ]


def _examples(scores: Scores, rule: Rule, max_length: int, reporter: Reporter) -> tuple[list[Example], dict[str, Any]]:
    """Read every shard, select, and count what was selected and what was too long."""
    examples: list[Example] = []
    too_long = 0
    selected = {"chosen": 0, "rejected": 0}
    tokens = {"chosen": 0, "rejected": 0}
    with reporter.task(f"read {scores.folder}", scores.manifest["counts"]["kept"], "pairs") as task:
        for row in scores.rows():
            task.advance()
            if longest(row.pair) > max_length:
                too_long += 1
                continue
            chosen, rejected = rule(row)
            examples.append(Example(row.pair, chosen.astype(np.float32), rejected.astype(np.float32)))
            for side, mask in (("chosen", chosen), ("rejected", rejected)):
                selected[side] += int(mask.sum())
                tokens[side] += len(mask)
    dropped = {f"longer than {max_length:,} tokens": too_long} if too_long else {}
    counts = {"read": len(examples) + too_long, "kept": len(examples), "dropped": dropped}
    counts |= {"tokens": tokens, "selected": selected}
    reporter.say(_equation(counts))
    if not examples:
        raise SepoError(
            f"{scores.folder}: all {too_long:,} pairs are {next(iter(dropped), 'missing')}", hint="raise --max-length"
        )
    return examples, counts


def _equation(counts: dict[str, Any]) -> str:
    dropped = "".join(f", {count:,} dropped: {reason}" for reason, count in counts["dropped"].items())
    sides = [
        f"{counts['selected'][side]:,} of {counts['tokens'][side]:,} {side} tokens"
        f" ({counts['selected'][side] / max(1, counts['tokens'][side]):.1%})"
        for side in ("chosen", "rejected")
    ]
    return f"{counts['kept']:,} pairs{dropped}; selected {' and '.join(sides)}"


def _refuse_unknown_ids(model: Any, examples: list[Example], name: str) -> None:
    pairs = [example.pair for example in examples]
    highest = max(int(ids.max()) for pair in pairs for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
    if highest >= embedding_rows(model):
        raise SepoError(
            f"the scores hold token id {highest:,}, but {name} has embeddings for {embedding_rows(model):,}",
            hint="resize the model's embeddings to its tokenizer, or use another model",
        )


def _rows(counts: dict[str, Any], last: dict[str, float]) -> list[tuple[str, str]]:
    return [
        ("pairs", f"{counts['kept']:,}"),
        ("selected tokens", _equation(counts).split("; selected ")[1]),
        ("loss of the last step", f"{last['loss']:.4f}"),
        ("its accuracy", f"{last['accuracy']:.3f}"),
        ("its reward margin", f"{last['reward_margin']:+.3f}"),
    ]
