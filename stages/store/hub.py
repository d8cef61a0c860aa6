"""A finished folder on the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from stages.configs import OptimizerConfig
from stages.errors import borrowed
from stages.reporting import Reporter

_LEFT_OUT = ["checkpoints/**", "snapshots/**", "trackers/**", ".*"]


def refuse_closed_hub(name: str | None) -> None:
    """Find out before hours of work whether the hub will take the folder; nothing where no name was given."""
    if name is None:
        return
    with borrowed(f"push_to_hub {name}", hint="give a name such as org/policy"):
        validate_repo_id(name)
    login = "run `hf auth login`, or set HF_TOKEN to a token that may write"
    with borrowed(f"push_to_hub {name}: the hub does not let you in", hint=login):
        HfApi().whoami()


def push_run(folder: Path, config: OptimizerConfig, reporter: Reporter, *, first: bool) -> list[tuple[str, str]]:
    """Upload a finished run without its checkpoints, in its first process; returns the summary's row.

    Where it fails, the run stays finished, and the same command tries again.
    """
    name = config.push_to_hub
    if name is None or not first:
        return []
    reporter.say(f"uploading {folder} to {name}")
    problem = f"{folder} is finished, but was not uploaded to {name}"
    with borrowed(problem, hint="run the same command again to try once more"):
        api = HfApi()
        url = api.create_repo(name, private=config.hub_private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, ignore_patterns=_LEFT_OUT, commit_message="Trained by sepo")
    return [("on the hub", str(url))]
