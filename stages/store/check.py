"""Whether a folder of scores is sound: every fault of every shard, of our own scorer's or of a foreign one's."""

from typing import Any, Final

from stages.errors import SepoError
from stages.reporting import Reporter, Summary, Table
from stages.store.alarms import Scale, alarms
from stages.store.manifest import read_manifest
from stages.store.place import Place
from stages.store.scores import MADE_BY, NEEDED, checksums_of, damaged_shards
from stages.store.shape import lookup
from stages.store.shards import DAMAGED, REMEDY, read_shard, tokenizer_of

SHOWN: Final = 3
"""faults of a kind that are named one by one"""
KINDS: Final = ("manifest", "shards", "checksums", "rows", "scores", "tokenizer")


class Findings:
    """Faults by kind, in the order they were found."""

    def __init__(self) -> None:
        self.faults: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self.notes: dict[str, str] = {}

    def add(self, kind: str, fault: str) -> None:
        self.faults[kind].append(fault)

    def table(self) -> Table:
        rows = []
        for kind, faults in self.faults.items():
            rows += [[kind, fault] for fault in faults[:SHOWN]] or [[kind, self.notes.get(kind, "sound")]]
            if len(faults) > SHOWN:
                rows.append([kind, f"and {len(faults) - SHOWN:,} more"])
        return Table("Findings", ["what", "found"], rows)


def check_scores(place: Place, vocabulary: tuple[str, int] | None, reporter: Reporter) -> Summary:
    """Read all of a folder and say what is wrong with it; that is the summary's failure.

    Args:
        vocabulary: hash and size of the token->id map that the ids should be of, if it is known.
    """
    findings = Findings()
    manifest = _manifest(place, findings)
    there = place.names()
    parquet = sorted(name for name in there if name.endswith(".parquet"))
    names: list[str] = manifest.get("files") or parquet
    fingerprint = str(manifest.get("fingerprint", ""))
    present = [name for name in names if name in there]
    for name in names:
        if name not in there:
            findings.add("shards", f"{name} is missing")
    for name in parquet:
        if name not in names:
            findings.add("shards", f"{name} is not the manifest's, but whoever reads *.parquet reads it")
    findings.notes["shards"] = f"{len(present):,} of {len(names):,} are there"
    _check_checksums(place, manifest, present, findings)
    ids_below = vocabulary[1] if vocabulary else lookup(manifest, ("tokenizer", "size"))
    scale = Scale()
    rows = _check_rows(place, present, fingerprint, ids_below, scale, findings, reporter)
    warnings = alarms(scale, manifest)
    for warning in warnings:
        reporter.warn(warning)
    findings.notes["scores"] = "; ".join(warnings) or "they tell tokens apart"
    kept = lookup(manifest, ("counts", "kept"))
    if kept is not None and kept != rows:
        findings.add("rows", f"{rows:,} sound rows, but the manifest says {kept}")
    findings.notes["rows"] = f"{rows:,}, all of them sound"
    _check_tokenizers(place, manifest, present, vocabulary, findings)
    faults = sum(map(len, findings.faults.values()))
    remedy = DAMAGED if manifest else REMEDY
    failure = SepoError(f"{place} has {faults:,} faults", hint=remedy) if faults else None
    title = f"{place} was checked" if faults else f"{place} is sound"
    return Summary(title, [], tables=(findings.table(),), failure=failure)


def _manifest(place: Place, findings: Findings) -> dict[str, Any]:
    try:
        manifest = read_manifest(place, MADE_BY, REMEDY)
    except SepoError as fault:
        findings.add("manifest", fault.message)
        return {}
    for path in NEEDED:
        if lookup(manifest, path) is None:
            findings.add("manifest", f"it has no {'.'.join(path)}")
    return manifest


def _check_checksums(place: Place, manifest: dict[str, Any], present: list[str], findings: Findings) -> None:
    checksums = checksums_of(manifest)
    for name in damaged_shards(place, manifest, present):
        findings.add("checksums", f"{name} is not the file that the manifest's checksum is of")
    for name in present if checksums else ():
        if name not in checksums:
            findings.add("checksums", f"the manifest has none for {name}")
    if not checksums:
        findings.notes["checksums"] = "the manifest has none; a foreign scorer's may be without"


def _check_rows(
    place: Place,
    names: list[str],
    fingerprint: str,
    ids_below: int | None,
    scale: Scale,
    findings: Findings,
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
                        findings.add("rows", f"{name}, row {number}: pair {pair_id} comes after pair {last}")
                    last = pair_id
                    sound += 1
            except SepoError as fault:
                findings.add("rows", f"{name}, row {number + 1}: {fault.message}")
    return sound


def _check_tokenizers(
    place: Place, manifest: dict[str, Any], names: list[str], vocabulary: tuple[str, int] | None, findings: Findings
) -> None:
    said = lookup(manifest, ("tokenizer", "vocabulary"))
    if vocabulary is not None and said is not None and said != vocabulary[0]:
        findings.add("tokenizer", "the manifest's is not that of the model")
    for name in names:
        try:
            found = tokenizer_of(place, name)
        except SepoError:
            continue  # told among the rows
        if said is not None and found != said:
            findings.add("tokenizer", f"{name} is of another one than the manifest says")
    findings.notes["tokenizer"] = "all agree" + ("; it is the model's" if vocabulary else "; no model to compare with")
