"""`sepo check`: whether a folder of scores is sound, of our own scorer or of a foreign one. Nothing is written."""

from typing import Any, Final

from stages.configs import CheckConfig
from stages.errors import SepoError
from stages.models.folders import load_tokenizer, resolve_without_weights
from stages.reporting import Reporter, Summary, Table
from stages.store.alarms import Scale, alarms
from stages.store.manifest import read_manifest
from stages.store.place import Place, place_of
from stages.store.scores import MADE_BY, NEEDED, checksums_of, damaged_shards
from stages.store.shape import lookup
from stages.store.shards import DAMAGED, REMEDY, read_shard, tokenizer_of
from stages.tokens.fingerprint import vocabulary_hash, vocabulary_size

SHOWN: Final = 3
"""faults of a kind that are named one by one"""
KINDS: Final = ("manifest", "shards", "checksums", "rows", "scores", "tokenizer")


class Faults:
    """Faults by kind, in the order they were found; and what to say of a kind that has none."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self.notes: dict[str, str] = {}

    def add(self, kind: str, fault: str) -> None:
        self.found[kind].append(fault)

    def table(self) -> Table:
        rows = []
        for kind, faults in self.found.items():
            rows += [[kind, fault] for fault in faults[:SHOWN]] or [[kind, self.notes.get(kind, "sound")]]
            if len(faults) > SHOWN:
                rows.append([kind, f"and {len(faults) - SHOWN:,} more"])
        return Table("Findings", ["what", "found"], rows)


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
    faults = Faults()
    manifest = _manifest(place, faults)
    present = _check_shards(place, manifest, faults)
    _check_checksums(place, manifest, present, faults)
    ids_below = vocabulary[1] if vocabulary else lookup(manifest, ("tokenizer", "size"))
    scale = Scale()
    rows = _check_rows(place, present, str(manifest.get("fingerprint", "")), ids_below, scale, faults, reporter)
    warnings = alarms(scale, manifest)
    for warning in warnings:
        reporter.warn(warning)
    faults.notes["scores"] = "; ".join(warnings) or "they tell tokens apart"
    kept = lookup(manifest, ("counts", "kept"))
    if kept is not None and kept != rows:
        faults.add("rows", f"{rows:,} sound rows, but the manifest says {kept}")
    faults.notes["rows"] = f"{rows:,}, all of them sound"
    _check_tokenizers(place, manifest, present, vocabulary, faults)
    count = sum(map(len, faults.found.values()))
    failure = SepoError(f"{place} has {count:,} faults", hint=DAMAGED if manifest else REMEDY) if count else None
    title = f"{place} was checked" if count else f"{place} is sound"
    return Summary(title, [], tables=(faults.table(),), failure=failure)


def _manifest(place: Place, faults: Faults) -> dict[str, Any]:
    try:
        manifest = read_manifest(place, MADE_BY, REMEDY)
    except SepoError as fault:
        faults.add("manifest", fault.message)
        return {}
    for path in NEEDED:
        if lookup(manifest, path) is None:
            faults.add("manifest", f"it has no {'.'.join(path)}")
    return manifest


def _check_shards(place: Place, manifest: dict[str, Any], faults: Faults) -> list[str]:
    """The shards that are there."""
    there = place.names()
    parquet = sorted(name for name in there if name.endswith(".parquet"))
    names: list[str] = manifest.get("files") or parquet
    for name in names:
        if name not in there:
            faults.add("shards", f"{name} is missing")
    for name in parquet:
        if name not in names:
            faults.add("shards", f"{name} is not the manifest's, but whoever reads *.parquet reads it")
    present = [name for name in names if name in there]
    faults.notes["shards"] = f"{len(present):,} of {len(names):,} are there"
    return present


def _check_checksums(place: Place, manifest: dict[str, Any], present: list[str], faults: Faults) -> None:
    checksums = checksums_of(manifest)
    for name in damaged_shards(place, manifest, present):
        faults.add("checksums", f"{name} is not the file that the manifest's checksum is of")
    for name in present if checksums else ():
        if name not in checksums:
            faults.add("checksums", f"the manifest has none for {name}")
    if not checksums:
        faults.notes["checksums"] = "the manifest has none; a foreign scorer's may be without"


def _check_rows(
    place: Place,
    names: list[str],
    fingerprint: str,
    ids_below: int | None,
    scale: Scale,
    faults: Faults,
    reporter: Reporter,
) -> int:
    """Read every row; returns how many were sound."""
    sound = 0
    last = -1
    with reporter.task(f"check {place}", len(names), "shards") as task:
        for name in names:
            task.advance()
            number = -1
            try:
                for number, row in enumerate(read_shard(place, name, fingerprint, ids_below=ids_below)):
                    pair_id = row.pair.pair_id
                    scale.add(row.scores)
                    if pair_id <= last:
                        faults.add("rows", f"{name}, row {number}: pair {pair_id} comes after pair {last}")
                    last = pair_id
                    sound += 1
            except SepoError as fault:
                faults.add("rows", f"{name}, row {number + 1}: {fault.message}")
    return sound


def _check_tokenizers(
    place: Place, manifest: dict[str, Any], names: list[str], vocabulary: tuple[str, int] | None, faults: Faults
) -> None:
    said = lookup(manifest, ("tokenizer", "vocabulary"))
    if vocabulary is not None and said is not None and said != vocabulary[0]:
        faults.add("tokenizer", "the manifest's is not that of the model")
    for name in names:
        try:
            found = tokenizer_of(place, name)
        except SepoError:
            continue  # told among the rows
        if said is not None and found != said:
            faults.add("tokenizer", f"{name} is of another one than the manifest says")
    faults.notes["tokenizer"] = "all agree" + ("; it is the model's" if vocabulary else "; no model to compare with")
