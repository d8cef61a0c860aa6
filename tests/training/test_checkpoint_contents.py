"""What a checkpoint holds, and what loading one may do."""

import json
import pickle

from stages.store.files import hash_file
from tests.training.fits import train


class Harmful:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def planted(checkpoint, name, data):
    """Put a file into a checkpoint as somebody would who knows of its checksums."""
    (checkpoint / name).write_bytes(data)
    seal = json.loads((checkpoint / "checksums.json").read_text())
    seal["files"][name] = hash_file(checkpoint / name)
    (checkpoint / "checksums.json").write_text(json.dumps(seal))


def test_no_file_of_a_checkpoint_runs_code_when_it_is_loaded(tmp_path):
    train(tmp_path / "run", save_steps=6)
    [checkpoint] = (tmp_path / "run/checkpoints").iterdir()
    names = sorted(path.name for path in checkpoint.iterdir())
    assert names == ["checksums.json", "optimizer.bin", "pytorch_model.bin", "random_states_0.pkl", "state.json"]
    sound = {name: (checkpoint / name).read_bytes() for name in names[1:]}
    for name in [*sound, "custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl"]:
        planted(checkpoint, name, pickle.dumps(Harmful(tmp_path / "executed")))
        # Refused, or not looked at.
        try:
            train(tmp_path / "run", save_steps=6)
        except Exception as error:
            print(f"{name}: {error}")
        assert not (tmp_path / "executed").exists(), name
        if name in sound:
            planted(checkpoint, name, sound[name])
