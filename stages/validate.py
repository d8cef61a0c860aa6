"""`sepo validate`: what the stages would make of a data set, and what that would cost, before any of it is spent.

Reads the data set and the tokenizer, never a model's weights. Nothing is written but the cache of the tokenised pairs,
which the stages find there.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.configs import ValidateConfig, column_names
from stages.data.conversations import SAME
from stages.data.layouts import Look, look, read_pairs
from stages.data.template_arguments import TOOLS, given_arguments
from stages.devices.processes import join_processes, refuse_several
from stages.errors import SepoError
from stages.method.statistics import Interval
from stages.models.adapters import is_adapter
from stages.models.folders import base_folder, load_tokenizer, resolve_without_weights
from stages.report.census import (
    Overlong,
    Repeats,
    Spreads,
    chosen_longer,
    cut_to,
    leaks,
    overlong,
    repeats,
    spreads,
    whole_lengths,
)
from stages.report.estimate import (
    Cost,
    Machine,
    Shape,
    Tokens,
    cost_table,
    gigabytes,
    measure_machine,
    model_shape,
    stage_costs,
)
from stages.report.visible import pair_table, token_table
from stages.reporting import Reporter, Summary, Table
from stages.tokens.dataset import what_to_do
from stages.tokens.encode import SAME_IDS, Encoder, truncate
from stages.tokens.tokenised import Reason, Tokenised, TokenTable, tokenised_pairs
from stages.types import Dropped, Pair, TokenPair

STAGE: Final = "validate"
EXAMPLES: Final = 3
LOOKED_AT: Final = 1000
"""rows from the beginning in which tools are looked for"""


class Example(NamedTuple):
    """The pair that is shown: the first that can be used, or, if there is none, the first that could be read."""

    pair: Pair | None
    tokens: TokenPair | None
    tools: bool
    """whether any of the first rows brings tools"""


class Rows(NamedTuple):
    """What becomes of the rows of a data set under a length limit."""

    read: int
    kept: int
    dropped: dict[str, Reason]
    truncated: int
    """pairs kept with a response cut"""
    overlong: Overlong
    tokens: Tokens
    """of what was kept"""

    def __str__(self) -> str:
        """``1,500 read = 1,490 kept + 10 dropped``."""
        return f"{self.read:,} read = {self.kept:,} kept + {self.read - self.kept:,} dropped"


class Findings(NamedTuple):
    """All that is known of a data set and what it will cost; of pairs only where there are any."""

    config: ValidateConfig
    look: Look
    example: Example
    rows: Rows
    spreads: Spreads | None
    repeats: Repeats | None
    longer: Interval | None
    tokenizer: dict[str, Any]
    machine: Machine
    costs: list[Cost]


def run(config: ValidateConfig, reporter: Reporter) -> Summary:
    """Look at everything; what is wrong comes back with the summary, as its `failure`.

    Raises:
        SepoError: an unknown layout, a file that cannot be trusted, no tokenizer or configuration.
    """
    accelerator = join_processes()
    refuse_several(accelerator, STAGE)
    folder = resolve_without_weights(config.model, reporter)
    tokenizer = load_tokenizer(folder, trust_remote_code=config.trust_remote_code, reporter=reporter)
    described = base_folder(folder) if is_adapter(folder) else folder
    shape = model_shape(described, trust_remote_code=config.trust_remote_code)
    encoder = Encoder(tokenizer, given_arguments(config.chat_template_kwargs))
    columns = column_names(config.columns)
    seen = look(config.dataset, columns)
    tokenised = tokenised_pairs(config.dataset, encoder, columns=columns, reporter=reporter)
    rows = _rows(config, tokenised)
    example = _example(config, columns, tokenised)
    lengths_N3 = tokenised.pairs.lengths
    machine = measure_machine(shape, accelerator.device)
    findings = Findings(
        config=config,
        look=seen,
        example=example,
        rows=rows,
        spreads=spreads(lengths_N3) if len(lengths_N3) else None,
        repeats=repeats(tokenised.pairs.content_hashes, tokenised.pairs.prompt_hashes) if len(lengths_N3) else None,
        longer=chosen_longer(lengths_N3) if len(lengths_N3) else None,
        tokenizer=_tokenizer_facts(tokenizer, encoder, example),
        machine=machine,
        costs=stage_costs(shape, rows.tokens, machine) if rows.kept else [],
    )
    warnings = _warnings(findings, encoder, shape)
    for warning in warnings:
        reporter.warn(warning)
    return Summary(
        f"{config.dataset} for {config.model}",
        [*_layout_rows(findings), *_pair_rows(findings), *_tokenizer_rows(findings.tokenizer)],
        tables=tuple(_tables(findings, tokenizer)),
        failure=_failure(findings),
        json=_json(findings, [*tokenised.remarks, *warnings]) if config.json else None,
    )


def _rows(config: ValidateConfig, tokenised: Tokenised) -> Rows:
    """Apply the limit to what could be tokenised, as the stages will."""
    table = tokenised.pairs
    lengths_N3 = table.lengths
    long_N = whole_lengths(lengths_N3) > config.max_length
    dropped = dict(tokenised.dropped)
    keep_N = ~long_N
    for place, reason in _lost(config, table, np.flatnonzero(long_N)):
        if reason is None:
            keep_N[place] = True
            continue
        before = dropped.get(reason, Reason(0, []))
        examples = before.examples + [f"row {table.pair_ids[place]}"] * (before.count < EXAMPLES)
        dropped[reason] = Reason(before.count + 1, examples)
    left_N3 = cut_to(lengths_N3[keep_N], config.max_length)
    tokens = Tokens(len(left_N3), *(int(total) for total in left_N3.sum(axis=0, dtype=np.int64)))
    truncated = int((keep_N & long_N).sum())
    return Rows(tokenised.read, len(left_N3), dropped, truncated, overlong(lengths_N3, config.max_length), tokens)


def _lost(config: ValidateConfig, table: TokenTable, places: NDArray[np.int64]) -> Iterator[tuple[int, str | None]]:
    """Where the pairs stand that are too long, and why each of them is lost; None where it is cut and kept."""
    for place in places.tolist():
        if config.overlong == "truncate":
            cut = truncate(table[place], config.max_length)
            yield place, cut.reason if isinstance(cut, Dropped) else None
        else:
            yield place, f"longer than {config.max_length:,} tokens"


def _example(config: ValidateConfig, columns: Mapping[str, str], tokenised: Tokenised) -> Example:
    fitting = np.flatnonzero(whole_lengths(tokenised.pairs.lengths) <= config.max_length)
    place = int(fitting[0]) if len(fitting) else 0
    tokens = tokenised.pairs[place] if len(tokenised.pairs) else None
    wanted = None
    tools = False
    for number, pair in enumerate(read_pairs(config.dataset, columns)):
        if isinstance(pair, Pair):
            tools = tools or TOOLS in pair.template_arguments
            if wanted is None and (tokens is None or pair.pair_id == tokens.pair_id):
                wanted = pair
        if number + 1 >= LOOKED_AT and (wanted or tokens is None):
            break
    return Example(wanted, tokens, tools)


def _tokenizer_facts(tokenizer: Any, encoder: Encoder, example: Example) -> dict[str, Any]:
    def named(id_: int | None) -> str | None:
        return None if id_ is None else f"{tokenizer.convert_ids_to_tokens(id_)} ({id_})"

    bos = tokenizer.bos_token_id
    prompt_ids = example.tokens.prompt_ids.tolist() if example.tokens else []
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


def _warnings(findings: Findings, encoder: Encoder, shape: Shape) -> list[str]:
    rows, longer, warnings = findings.rows, findings.longer, []
    if rows.kept < rows.read / 2:
        warnings.append(f"more than half of the rows are dropped: {rows}")
    if longer is not None and leaks(longer):
        side = "longer" if longer.value > 0.5 else "shorter"
        warnings.append(
            f"the chosen response is the {side} one in {max(longer.value, 1 - longer.value):.0%} of pairs: "
            "length alone tells much of the preference, and a model may learn that instead"
        )
    if findings.example.tools and not encoder.shows_tools:
        warnings.append("rows bring tools, but the chat template does not write them: no model will see them")
    if findings.tokenizer["end_of_turn"] is None:
        warnings.append("the tokenizer has no end-of-turn token and no eos: no response will be taught to end")
    if findings.tokenizer["leading_bos"] > 1:
        warnings.append("the prompt begins with more than one BOS token: the chat template may write one too many")
    if findings.tokenizer["tokens"] > shape.vocabulary > 0:
        warnings.append(
            f"the tokenizer has {findings.tokenizer['tokens']:,} tokens, the model has room for {shape.vocabulary:,}"
        )
    if shape.positions is not None and findings.config.max_length > shape.positions:
        warnings.append(
            f"--max-length is {findings.config.max_length:,}, but the model was made for {shape.positions:,} tokens"
        )
    short = [cost.stage for cost in findings.costs if cost.memory > findings.machine.memory]
    if short:
        has = gigabytes(findings.machine.memory)
        warnings.append(f"{', '.join(short)} may need more memory than the {has} here; lower --max-tokens-per-device")
    return warnings


def _layout_rows(findings: Findings) -> list[tuple[str, str]]:
    seen = findings.look
    names = [f"{theirs} as {ours}" if ours != theirs else ours for ours, theirs in seen.columns.items()]
    held = [f"{name} ({seen.kinds[ours]})" for name, ours in zip(names, seen.columns, strict=True)]
    return [
        ("layout", seen.layout),
        ("columns read", ", ".join(held)),
        ("columns not read", ", ".join(seen.ignored) or "none"),
    ]


def _pair_rows(findings: Findings) -> list[tuple[str, str]]:
    rows, tokens = findings.rows, findings.rows.tokens
    shown = [
        ("rows", str(rows)),
        (f"longer than {findings.config.max_length:,}", _overlong_words(rows.overlong, findings.config)),
        ("tokens kept", f"prompt {tokens.prompt:,}, chosen {tokens.chosen:,}, rejected {tokens.rejected:,}"),
    ]
    identical = sum(rows.dropped[reason].count for reason in (SAME, SAME_IDS) if reason in rows.dropped)
    shown.append(("chosen equals rejected", f"{identical:,} rows, dropped" if identical else "0 rows"))
    if findings.repeats is not None:
        again, prompts, most = findings.repeats
        shown.append(("the same pair again", f"{again:,} pairs"))
        several = f", up to {most:,} pairs of one" if most > 1 else ""
        shown.append(("prompts", f"{prompts:,} different ones{several}"))
    if findings.longer is not None:
        shown.append(("chosen is the longer one", f"{findings.longer:.1%} of the pairs whose lengths differ"))
    return shown


def _overlong_words(long: Overlong, config: ValidateConfig) -> str:
    """What the limit does, and what another way of applying it would do."""
    if not long.pairs:
        return "no pair"
    with_room, tokens = long.pairs - long.without_room, f"{long.cut_tokens:,} tokens"
    words = {
        "drop": f"dropped; --overlong truncate would keep {with_room:,} of them and cut {tokens}",
        "truncate": f"{with_room:,} of them are cut by {tokens}, the others have no room for a response",
        "error": f"an error; --overlong truncate would keep {with_room:,} of them and cut {tokens}",
    }
    return f"{long.pairs:,} pairs with {long.tokens:,} tokens: {words[config.overlong]}"


def _tokenizer_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    template = "" if facts["chat_template"] else " (no chat template: prompts are plain text)"
    same = (
        ", the same as eos: kept apart by masks, never by id" if facts["pad"] == facts["eos"] and facts["pad"] else ""
    )
    return [
        ("tokenizer", f"{facts['tokens']:,} tokens{template}"),
        ("end of turn", f"{facts['end_of_turn'] or 'none'}, eos {facts['eos'] or 'none'}"),
        (
            "BOS",
            f"{facts['bos']}; the prompt below begins with {_times(facts['leading_bos'])}" if facts["bos"] else "none",
        ),
        ("padding", f"{facts['pad'] or 'none'}{same}"),
    ]


def _times(count: int) -> str:
    return {0: "none", 1: "one"}.get(count, f"{count} of them")


def _tables(findings: Findings, tokenizer: Any) -> Iterator[Table]:
    example = findings.example
    if example.pair is not None:
        yield pair_table(example.pair)
    if findings.rows.dropped:
        yield _dropped_table(findings.rows)
    if findings.spreads is not None:
        yield findings.spreads.table()
    if example.tokens is not None:
        yield token_table(example.tokens, tokenizer)
    if findings.costs:
        yield cost_table(findings.costs, findings.machine)


def _dropped_table(rows: Rows) -> Table:
    body = [
        [reason, f"{dropped.count:,}", f"{dropped.count / rows.read:.1%}", ", ".join(dropped.examples[:EXAMPLES])]
        for reason, dropped in sorted(rows.dropped.items(), key=lambda item: -item[1].count)
    ]
    return Table("Dropped rows (numbered from 0)", ["reason", "rows", "share", "the first"], body)


def _failure(findings: Findings) -> SepoError | None:
    config, rows = findings.config, findings.rows
    reasons = ", ".join(
        f"{dropped.count:,} {reason}: {', '.join(dropped.examples[:EXAMPLES])}"
        for reason, dropped in rows.dropped.items()
    )
    if not rows.kept:
        return SepoError(
            f"{config.dataset}: no pair is left: {rows} ({reasons})",
            hint=what_to_do({reason: dropped.count for reason, dropped in rows.dropped.items()}),
        )
    if config.overlong == "error" and rows.overlong.pairs:
        return SepoError(
            f"{config.dataset}: {rows.overlong.pairs:,} pairs have more than {config.max_length:,} tokens",
            hint="raise --max-length, or choose --overlong drop or --overlong truncate",
        )
    if config.strict and rows.dropped:
        return SepoError(
            f"{config.dataset}: {rows} ({reasons})",
            hint="repair or remove these rows (row 0 is the first), or leave out --strict",
        )
    return None


def _json(findings: Findings, warnings: list[str]) -> dict[str, Any]:
    rows, example = findings.rows, findings.example
    return {
        "dataset": findings.config.dataset,
        "model": findings.config.model,
        "layout": {
            "name": findings.look.layout,
            "columns": findings.look.columns,
            "not_read": findings.look.ignored,
        },
        "rows": {
            "read": rows.read,
            "kept": rows.kept,
            "truncated": rows.truncated,
            "dropped": {reason: {"count": d.count, "examples": d.examples} for reason, d in rows.dropped.items()},
        },
        "max_length": {"limit": findings.config.max_length, **rows.overlong._asdict()},
        "tokens_kept": rows.tokens._asdict(),
        "lengths": findings.spreads.as_json() if findings.spreads else None,
        "repeats": findings.repeats._asdict() if findings.repeats else None,
        "chosen_longer": findings.longer.as_json() if findings.longer else None,
        "tokenizer": findings.tokenizer,
        "example": {
            "pair": example.pair._asdict() if example.pair else None,
            "ids": {name: ids.tolist() for name, ids in example.tokens._asdict().items() if name != "pair_id"}
            if example.tokens
            else None,
        },
        "estimate": {
            "machine": findings.machine._asdict(),
            "stages": [
                {**cost._asdict(), "seconds": round(cost.seconds(findings.machine), 1)} for cost in findings.costs
            ],
        },
        "warnings": warnings,
        "error": failure.message if (failure := _failure(findings)) else None,
    }
