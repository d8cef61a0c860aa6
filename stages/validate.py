"""`sepo validate`: what the stages would make of a data set, and what that would cost, before any of it is spent.

No weights are read: models are counted on the meta device. Nothing is written but the cache of the tokenised pairs,
which the stages find there.
"""

import math
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, Final

import numpy as np
import torch

from stages.configs import ValidateConfig, byte_count, column_names
from stages.data.conversations import SAME
from stages.data.layouts import look, read_pairs
from stages.data.template_arguments import TOOLS, given_arguments
from stages.devices.processes import join_processes, refuse_several
from stages.errors import SepoError
from stages.method.statistics import Interval
from stages.models.folders import described_in, load_tokenizer, load_without_weights, resolve_without_weights
from stages.models.quantization import quantized
from stages.report.census import chosen_longer, leaks, overlong, repeats, spread_table, spreads, whole_lengths
from stages.report.estimate import (
    ModelSize,
    cost_table,
    gigabytes,
    model_size,
    plan_json,
    plan_table,
    stage_costs,
    with_hours,
)
from stages.report.visible import pair_table, token_table
from stages.reporting import Reporter, Summary, Table, counted
from stages.tokens.dataset import Counts, LengthLimit, Tokenised, apply_limit, refuse_dropped, refuse_empty, tokenised
from stages.tokens.encode import SAME_IDS, Encoder
from stages.training.budget import memory_of
from stages.training.footprint import Footprint, Machine, Planned, footprint, planned
from stages.training.lora import refuse_useless_lora
from stages.training.optimizers import refuse_useless_optimizer
from stages.types import Pair, Tokenizer, TokenPair

STAGE: Final = "validate"
LOOKED_AT: Final = 1000
"""pairs from the beginning in which tools are looked for"""


def run(config: ValidateConfig, reporter: Reporter) -> Summary:
    """Look at everything; what is wrong comes back with the summary, as its `failure`."""
    accelerator = join_processes()
    refuse_several(accelerator, STAGE)
    tokenizer, encoder, model = _check(config, accelerator.device, reporter)
    found, counts = _load(config, encoder, reporter)
    pair, ids, tools = _example(config, found)
    size = model_size(model, config.optim)
    report = _compute(config, found, counts, size, accelerator.device)
    plan = _plan(config, model, found, counts, accelerator.device) if config.plan and counts.kept else None
    report["plan"] = plan_json(*plan) if plan else None
    report["tokenizer"] = _tokenizer_facts(tokenizer, encoder, ids)
    warnings = list(_warnings(report, counts, size))
    if tools and not encoder.shows_tools:
        warnings.append("rows bring tools, but the chat template does not write them: no model will see them")
    for warning in warnings:
        reporter.warn(warning)
    failure = _failure(config, counts, report["max_length"]["pairs"])
    lists = {part: values.tolist() for part, values in zip(ids._fields[1:], ids.parts, strict=True)} if ids else None
    report["example"] = {"pair": pair._asdict() if pair else None, "ids": lists}
    report["warnings"] = [*found.remarks, *warnings]
    report["error"] = failure.message if failure else None
    estimate = report["estimate"]
    tables = [
        pair_table(pair) if pair else None,
        _dropped_table(counts),
        spread_table(report["lengths"]) if report["lengths"] else None,
        token_table(ids, tokenizer) if ids else None,
        cost_table(estimate["stages"], size) if estimate["stages"] else None,
        plan_table(*plan) if plan else None,
    ]
    return Summary(
        f"{config.dataset} for {config.model_name}",
        [*_data_rows(report, config.overlong), *_tokenizer_rows(report["tokenizer"])],
        tables=tuple(table for table in tables if table),
        failure=failure,
        json=report if config.json else None,
    )


def _check(config: ValidateConfig, device: torch.device, reporter: Reporter) -> tuple[Any, Encoder, Planned]:
    """The model's tokenizer, and the model as it would be trained, without weights."""
    training = config.training()
    refuse_useless_optimizer(training, torch.device("cuda") if config.plan else device, divided=config.use_fsdp)
    folder = resolve_without_weights(config.model_name, reporter)
    tokenizer = load_tokenizer(folder, trust_remote_code=config.trust_remote_code, reporter=reporter)
    refuse_useless_lora(training, folder, keeps_base=True)
    if config.plan and (held := quantized(folder)):
        raise SepoError(
            f"{folder} holds its weights in {held}, of which a plan knows no size",
            hint="plan with the model that it was made from, and --quantize 4bit",
        )
    model = load_without_weights(described_in(folder), trust_remote_code=config.trust_remote_code)
    return (
        tokenizer,
        Encoder(tokenizer, given_arguments(config.chat_template_kwargs)),
        planned(model, training, reporter),
    )


def _load(config: ValidateConfig, encoder: Encoder, reporter: Reporter) -> tuple[Tokenised, Counts]:
    """The pairs before any limit, and what becomes of all rows under the limit."""
    found = tokenised(config.dataset, encoder, columns=column_names(config.columns), reporter=reporter)
    limit = LengthLimit(config.max_length, "drop" if config.overlong == "error" else config.overlong)
    return found, apply_limit(limit, found, config.dataset)[1]


def _example(config: ValidateConfig, found: Tokenised) -> tuple[Pair | None, TokenPair | None, bool]:
    """The pair that is shown, the first that fits, as text and as ids; and whether any of the first ones brings tools.

    Where none fits it is the first that has ids, and where none has any, the first that could be read.
    """
    fitting = np.flatnonzero(whole_lengths(found.pairs.lengths) <= config.max_length)
    ids = found.pairs[int(fitting[0]) if len(fitting) else 0] if len(found.pairs) else None
    pairs = (pair for pair in read_pairs(config.dataset, column_names(config.columns)) if isinstance(pair, Pair))
    first = list(islice(pairs, LOOKED_AT))
    tools = any(TOOLS in pair.template_arguments for pair in first)
    return next((pair for pair in chain(first, pairs) if ids is None or pair.pair_id == ids.pair_id), None), ids, tools


def _compute(
    config: ValidateConfig, found: Tokenised, counts: Counts, size: ModelSize, device: torch.device
) -> dict[str, Any]:
    """All that is known of the data set and what it will cost; of pairs only where there are any."""
    layout = look(config.dataset, column_names(config.columns))
    pairs = found.pairs if len(found.pairs) else None
    costs = stage_costs(size, counts.kept, counts.tokens, config.training()) if counts.kept else []
    return {
        "dataset": config.dataset,
        "model": config.model_name,
        "layout": {"name": layout.layout, "columns": layout.columns, "kinds": layout.kinds, "not_read": layout.ignored},
        "rows": {
            "read": counts.read,
            "kept": counts.kept,
            "truncated": counts.truncated,
            "dropped": {
                reason: {"count": count, "examples": counts.examples[reason]}
                for reason, count in counts.dropped.most_common()
            },
        },
        "max_length": {"limit": config.max_length, **overlong(found.pairs.lengths, config.max_length)},
        "tokens_kept": dict(counts.tokens),
        "lengths": spreads(pairs.lengths) if pairs else None,
        "repeats": repeats(pairs.content_hashes, pairs.prompt_hashes) if pairs else None,
        "chosen_longer": chosen_longer(pairs.lengths).as_json() if pairs else None,
        "estimate": {"memory": memory_of(device), "stages": with_hours(costs, config)},
    }


def _plan(
    config: ValidateConfig, model: Planned, found: Tokenised, counts: Counts, here: torch.device
) -> tuple[Footprint, Machine]:
    """What training takes of each device of the machine that is planned for."""
    lengths = found.pairs.lengths[whole_lengths(found.pairs.lengths) <= config.max_length]
    longest = int(lengths.sum(axis=1).max()) if len(lengths) else 2 * config.max_length
    pairs = math.ceil(min(config.batch_size, counts.kept) / config.world_size)
    most = math.ceil(pairs * sum(counts.tokens.values()) / counts.kept)
    memory = byte_count(config.device_memory) if config.device_memory else memory_of(here)
    machine = Machine(config.world_size, config.use_fsdp, "cuda" if config.device_memory else here.type, memory)
    return footprint(model, config.training(), machine, longest, most), machine


def _tokenizer_facts(tokenizer: Tokenizer, encoder: Encoder, example: TokenPair | None) -> dict[str, Any]:
    def named(id_: int | None) -> str | None:
        return None if id_ is None else f"{tokenizer.convert_ids_to_tokens(id_)} ({id_})"

    bos = tokenizer.bos_token_id
    prompt_ids = example.prompt_ids.tolist() if example else []
    others = (place for place, id_ in enumerate(prompt_ids) if id_ != bos)
    return {
        "tokens": len(tokenizer),
        "chat_template": bool(tokenizer.chat_template),
        "end_of_turn": named(encoder.end_of_turn),
        "eos": named(tokenizer.eos_token_id),
        "bos": named(bos),
        "leading_bos": next(others, len(prompt_ids)),
        "pad": named(tokenizer.pad_token_id),
    }


def _warnings(report: dict[str, Any], counts: Counts, size: ModelSize) -> Iterator[str]:
    tokenizer, limit, here = report["tokenizer"], report["max_length"]["limit"], report["estimate"]["memory"]
    if counts.kept < counts.read / 2:
        yield f"more than half of the rows are dropped: {counts}"
    longer = Interval(**report["chosen_longer"]) if report["chosen_longer"] else None
    if longer and leaks(longer):
        side = "longer" if longer.value > 0.5 else "shorter"
        yield (
            f"the chosen response is the {side} one in {max(longer.value, 1 - longer.value):.0%} of pairs: "
            "length alone tells much of the preference, and a model may learn that instead"
        )
    if tokenizer["end_of_turn"] is None:
        yield "the tokenizer has no end-of-turn token and no eos: no response will be taught to end"
    if tokenizer["leading_bos"] > 1:
        yield "the prompt begins with more than one BOS token: the chat template may write one too many"
    if tokenizer["tokens"] > size.embeddings:
        yield f"the tokenizer has {tokenizer['tokens']:,} tokens, the model has room for {size.embeddings:,}"
    if size.positions is not None and limit > size.positions:
        yield f"--max-length is {limit:,}, but the model was made for {size.positions:,} tokens"
    short = [cost["stage"] for cost in report["estimate"]["stages"] if cost["memory"] > here]
    if short and not report["plan"]:
        more = "--lora-rank trains with less, and --plan says what fits other machines"
        yield f"{', '.join(short)} need more memory than the {gigabytes(here)} here; {more}"
    if report["plan"] and report["plan"]["bytes"]["activations"] is None:
        yield "what a micro-batch takes is unknown: this model's layers look at numbers to know what to compute"


def _failure(config: ValidateConfig, counts: Counts, too_long: int) -> SepoError | None:
    """The error with which the stages would end."""
    try:
        refuse_empty(counts, config.dataset)
        if config.overlong == "error" and too_long:
            raise SepoError(
                f"{config.dataset}: {too_long:,} pairs have more than {config.max_length:,} tokens",
                hint="raise --max-length, or choose --overlong drop or --overlong truncate",
            )
        if config.strict:
            refuse_dropped(counts, config.dataset)
    except SepoError as error:
        return error
    return None


def _dropped_table(counts: Counts) -> Table | None:
    rows = [
        [reason, f"{count:,}", f"{count / counts.read:.1%}", ", ".join(counts.examples[reason])]
        for reason, count in counts.dropped.most_common()
    ]
    return Table("Dropped rows (numbered from 0)", ["reason", "rows", "share", "the first"], rows) if rows else None


def _data_rows(report: dict[str, Any], how: str) -> list[tuple[str, str]]:
    layout, rows, tokens = report["layout"], report["rows"], report["tokens_kept"]
    names = {ours: f"{theirs} as {ours}" if ours != theirs else ours for ours, theirs in layout["columns"].items()}
    long, effect = report["max_length"], "no pair"
    if long["pairs"]:
        done = {"drop": "dropped", "truncate": "cut", "error": "an error"}[how]
        truncating = f"{long['pairs'] - long['without_room']:,} of them and cuts {long['cut_tokens']:,} tokens"
        effect = f"{long['pairs']:,} pairs with {long['tokens']:,} tokens: {done}; truncating keeps {truncating}"
    identical = sum(rows["dropped"][reason]["count"] for reason in (SAME, SAME_IDS) if reason in rows["dropped"])
    shown = [
        ("layout", layout["name"]),
        ("columns read", ", ".join(f"{name} ({layout['kinds'][ours]})" for ours, name in names.items())),
        ("columns not read", ", ".join(layout["not_read"]) or "none"),
        ("rows", f"{rows['read']:,} read = {rows['kept']:,} kept + {rows['read'] - rows['kept']:,} dropped"),
        (f"longer than {long['limit']:,}", effect),
        ("tokens kept", ", ".join(f"{side} {count:,}" for side, count in tokens.items())),
        ("chosen equals rejected", f"{counted(identical, 'row')}, dropped" if identical else "0 rows"),
    ]
    if again := report["repeats"]:
        several = f", up to {again['most']:,} pairs of one" if again["most"] > 1 else ""
        shown.append(("the same pair again", counted(again["pairs"], "pair")))
        shown.append(("prompts", f"{again['prompts']:,} different ones{several}"))
    if longer := report["chosen_longer"]:
        shown.append(("chosen is the longer one", f"{Interval(**longer):.1%} of the pairs whose lengths differ"))
    return shown


def _tokenizer_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    template = "" if facts["chat_template"] else " (no chat template: prompts are plain text)"
    same = facts["pad"] and facts["pad"] == facts["eos"]
    times = {0: "none", 1: "one"}.get(facts["leading_bos"], f"{facts['leading_bos']} of them")
    return [
        ("tokenizer", f"{facts['tokens']:,} tokens{template}"),
        ("end of turn", f"{facts['end_of_turn'] or 'none'}, eos {facts['eos'] or 'none'}"),
        ("BOS", f"{facts['bos']}; the prompt below begins with {times}" if facts["bos"] else "none"),
        ("padding", (facts["pad"] or "none") + (", the same as eos: kept apart by masks, never by id" if same else "")),
    ]
