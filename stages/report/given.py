"""What a page is made of: folders and files of any command, recognised by what they say of themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from stages.errors import SepoError, borrowed
from stages.store.files import read_object
from stages.store.manifest import FINISHED, load_manifest, refuse_other_format
from stages.store.place import Place, place_of, short_names
from stages.store.results import read_results
from stages.store.scores import MADE_BY, Scores, open_scores
from stages.training.metric_lines import FILE, sound_lines

T = TypeVar("T")
TRAINING: Final = ("train-oracle", "train-policy")
EVALUATIONS: Final = {"compare": "compare.json", "demo-report": "report.json"}
"""by the stage that writes a folder of figures, the file that they are in"""
HINT: Final = (
    "give folders of score, project-scores, denoise, train-oracle, train-policy, compare or demo-report, or JSON files"
    " of evaluate or results"
)


class LoggedPhase(NamedTuple):
    """The logged steps of one phase of a training."""

    name: str
    phase: str
    records: list[dict[str, Any]]


class Evaluation(NamedTuple):
    """Figures of models."""

    name: str
    stage: str
    report: dict[str, Any]


class Given(NamedTuple):
    """All that a page is made of."""

    scores: Scores | None
    runs: list[LoggedPhase]
    evaluations: list[Evaluation]
    benchmarks: list[Evaluation]
    manifests: dict[str, dict[str, Any]]
    """by name, in the order given"""


def open_given(names: tuple[str, ...]) -> Given:
    """Open what was named; a folder that has no manifest stands for those in it that have one.

    Raises:
        SepoError: something that no command wrote, or that is not finished, or two folders of scores.
    """
    places = [*{str(place): place for name in names for place in _expanded(name)}.values()]
    given = Given(None, [], [], [], {})
    for name, place in zip(short_names(places), places, strict=True):
        given = _with(given, name, place)
    return given


def understood(evaluation: Evaluation, read: Callable[[Evaluation], T]) -> T:
    """What is read of an evaluation.

    Raises:
        SepoError: something in it is missing or of another kind.
    """
    with borrowed(f"{evaluation.name} is not what `sepo {evaluation.stage}` writes", HINT):
        return read(evaluation)


def _expanded(name: str) -> list[Place | Path]:
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    place = place_of(name)
    if not place.has(FINISHED) and path.is_dir():
        inside = [each for each in sorted(path.iterdir()) if (each / FINISHED).is_file()]
        if inside:
            return [place_of(str(each)) for each in inside]
    return [place]


def _with(given: Given, name: str, place: Place | Path) -> Given:
    if isinstance(place, Path):
        report = read_results(place, HINT, ("evaluate", "results"))
        given.manifests[name] = report
        evaluation = Evaluation(name, report["stage"], report)
        if evaluation.stage == "results":
            return given._replace(benchmarks=[*given.benchmarks, evaluation])
        return given._replace(evaluations=[*given.evaluations, evaluation])
    manifest = _manifest(place)
    stage = manifest.get("stage")
    given.manifests[name] = manifest
    if stage in MADE_BY:
        if given.scores is not None:
            raise SepoError(
                f"{given.scores.folder} and {place} are both scores, and a page shows one folder of them",
                hint="give one of them, and make a page for the other",
            )
        return given._replace(scores=open_scores(place))
    if stage in TRAINING:
        return given._replace(runs=[*given.runs, *_runs(name, place)])
    if stage in EVALUATIONS and place.local is not None:
        report = read_object(place.local / EVALUATIONS[stage], f"run `sepo {stage}` again")
        return given._replace(evaluations=[*given.evaluations, Evaluation(name, str(stage), report)])
    return given


def _manifest(place: Place) -> dict[str, Any]:
    try:
        manifest = load_manifest(place)
    except FileNotFoundError:
        what = "has no manifest.json" if place.names() else "is not there, or is empty"
        raise SepoError(f"{place} {what}: there is nothing to show of it", hint=HINT) from None
    if not isinstance(manifest.get("stage"), str):
        raise SepoError(f"{place}: its manifest does not say which command wrote it", hint=HINT)
    refuse_other_format(manifest, place)
    return manifest


def _runs(name: str, place: Place) -> list[LoggedPhase]:
    """The phases of a training in the order they were trained."""
    phases: dict[str, list[dict[str, Any]]] = {}
    for line in sound_lines(place, FILE)[0]:
        there = {key: value for key, value in line.record.items() if value is not None}
        phases.setdefault(there["phase"], []).append(there)
    return [LoggedPhase(name, phase, records) for phase, records in phases.items()]
