"""`sepo check`: whether a folder of scores is sound, of our own scorer or of a foreign one. Nothing is written."""

from collections import defaultdict
from typing import Any, Final

from stages.configs import CheckConfig
from stages.errors import SepoError
from stages.models.folders import load_tokenizer, resolve_without_weights
from stages.reporting import Reporter, Summary, Table, counted
from stages.store.alarms import Scale, alarms
from stages.store.manifest import read_manifest
from stages.store.place import Place, place_of
from stages.store.scores import MADE_BY, NEEDED
from stages.store.shape import lookup
from stages.store.shards import DAMAGED, REMEDY, read_shard
from stages.tokens.fingerprint import vocabulary_hash, vocabulary_size

SHOWN: Final = 3
"""faults of a kind that are named one by one"""


def run(config: CheckConfig, reporter: Reporter) -> Summary:
    """Read all of a folder; what is wrong with it is the summary's failure."""
    vocabulary = None
    if config.model:
        folder = resolve_without_weights(config.model, reporter)
        tokenizer = load_tokenizer(folder, trust_remote_code=config.trust_remote_code)
        vocabulary = vocabulary_hash(tokenizer), vocabulary_size(tokenizer)
    return check_scores(place_of(config.scores), vocabulary, reporter)


def check_scores(place: Place, vocabulary: tuple[str, int] | None, reporter: Reporter) -> Summary:
    """As `run`, with the hash and the size of the token->id map that the ids should be of, if it is known."""
    faults: dict[str, list[str]] = defaultdict(list)
    try:
        manifest = read_manifest(place, MADE_BY, REMEDY)
        faults["manifest"] += [f"it has no {path}" for path in NEEDED if lookup(manifest, path) is None]
    except SepoError as fault:
        faults["manifest"].append(fault.message)
        manifest = {}
    present = _check_names(place, manifest, faults["shards"])
    scale = Scale()
    rows = _read_rows(place, manifest, present, vocabulary, scale, faults["rows"], reporter)
    kept = lookup(manifest, "counts.kept")
    if kept is not None and kept != rows:
        faults["rows"].append(f"{rows:,} sound rows, but the manifest says {kept}")
    if vocabulary is not None and lookup(manifest, "tokenizer.vocabulary") not in (None, vocabulary[0]):
        faults["tokenizer"].append("the manifest's is not that of the model")
    warnings = alarms(scale, manifest)
    for warning in warnings:
        reporter.warn(warning)
    sound = {
        "manifest": "sound",
        "shards": f"{len(present):,}, " + ("as written" if "shards" in manifest else "without checksums to compare"),
        "rows": f"{rows:,}, all of them sound",
        "tokenizer": "of the model" if vocabulary else "all agree; no model to compare with",
        "scores": "; ".join(warnings) or "they tell tokens apart",
    }
    if not rows:
        sound |= dict.fromkeys(("rows", "tokenizer", "scores"), "nothing was read")
    count = sum(map(len, faults.values()))
    hint = DAMAGED if manifest else REMEDY
    failure = SepoError(f"{place} has {counted(count, 'fault')}", hint=hint) if count else None
    title = f"{place} was checked" if count else f"{place} is sound"
    return Summary(title, [], tables=(_table(faults, sound),), failure=failure)


def _table(faults: dict[str, list[str]], sound: dict[str, str]) -> Table:
    rows = []
    for kind, said in sound.items():
        rows += [[kind, each] for each in faults[kind][:SHOWN] or [said]]
        rows += [[kind, f"and {len(faults[kind]) - SHOWN:,} more"]] if len(faults[kind]) > SHOWN else []
    return Table("Findings", ["what", "found"], rows)


def _check_names(place: Place, manifest: dict[str, Any], faults: list[str]) -> list[str]:
    """The shards that are there, of those that should be."""
    there = place.names()
    parquet = sorted(name for name in there if name.endswith(".parquet"))
    names: list[str] = manifest.get("files", parquet)
    checksums = manifest.get("shards") or {}
    faults += [f"{name} is missing" for name in names if name not in there]
    faults += [
        f"{name} is not the manifest's, but whoever reads *.parquet reads it" for name in parquet if name not in names
    ]
    faults += [f"the manifest has no checksum of {name}" for name in names if checksums and name not in checksums]
    return [name for name in names if name in there]


def _read_rows(
    place: Place,
    manifest: dict[str, Any],
    names: list[str],
    vocabulary: tuple[str, int] | None,
    scale: Scale,
    faults: list[str],
    reporter: Reporter,
) -> int:
    """Read every row; returns how many were sound."""
    said, size = (lookup(manifest, f"tokenizer.{key}") for key in ("vocabulary", "size"))
    sound, last = 0, -1
    with reporter.task(f"check {place}", len(names), "shards") as task:
        for name in names:
            task.advance()
            checksum = manifest.get("shards", {}).get(name)
            fingerprint, ids_below = str(manifest.get("fingerprint", "")), vocabulary[1] if vocabulary else size
            try:
                for row in read_shard(place, name, fingerprint, checksum, tokenizer=said, ids_below=ids_below):
                    pair_id = int(row.pair.pair_id)
                    scale.add(row.scores)
                    if pair_id <= last:
                        faults.append(f"{name}: pair {pair_id} comes after pair {last}")
                    last = pair_id
                    sound += 1
            except SepoError as fault:
                faults.append(fault.message)
    return sound
