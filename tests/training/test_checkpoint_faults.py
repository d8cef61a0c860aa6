"""What is said when a sound checkpoint cannot be loaded: only one that nobody can read is to be deleted."""

import io

import pytest
import torch
from accelerate import Accelerator

from stages.devices.memory import OutOfMemory
from stages.errors import SepoError
from stages.reporting import Quiet
from stages.store import checksums
from stages.training.checkpoints import Checkpoints


class Part:
    """Saves nothing; `load` is what happens when it is loaded."""

    def __init__(self, load=lambda: None):
        self.load = load

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        self.load()


@pytest.fixture
def resume(tmp_path):
    """Save a checkpoint, then go on from it with other parts."""

    def go(**parts):
        of_run = (Accelerator(cpu=True), tmp_path / "checkpoints", "t", 1, "sha256:one")
        Checkpoints(*of_run, {"part": Part()}).save(2)
        return Checkpoints(*of_run, parts).resume(Quiet(), 4)

    return go


def raises(error):
    def load():
        raise error

    return Part(load)


def test_a_sound_checkpoint_is_gone_on_from(resume):
    assert resume(part=Part()) == 2


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    of_run = (Accelerator(cpu=True), tmp_path / "checkpoints", "t", 1, "sha256:one")
    part = Part()
    part.state_dict = raises(OSError("no room")).load
    with pytest.raises(SepoError, match=r"cannot write .*t-00000002: no room"):
        Checkpoints(*of_run, {"part": part}).save(2)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_too_little_memory_is_not_the_checkpoints_fault(resume, tmp_path):
    """An allocation that no machine can make."""
    with pytest.raises(OutOfMemory, match=r"out of memory in loading .*t-00000002: .*allocate") as caught:
        resume(part=Part(lambda: torch.empty(10**15)))
    assert caught.value.hint.endswith("run the same again: the checkpoints are sound")
    assert (tmp_path / "checkpoints/t-00000002/checksums.json").exists()


def test_a_file_that_cannot_be_read_is_not_to_be_deleted(resume, tmp_path):
    with pytest.raises(SepoError, match=r"cannot read .*t-00000002: .*No such file") as caught:
        resume(part=Part((tmp_path / "gone").read_text))
    assert "delete" not in caught.value.hint


@pytest.mark.parametrize("fault", [torch.distributed.DistBackendError, torch.AcceleratorError])
def test_a_device_or_a_connection_that_failed_keeps_its_traceback(resume, fault):
    with pytest.raises(fault):
        resume(part=raises(fault("unhandled error")))


def test_a_checkpoint_of_another_format_may_be_deleted(resume, tmp_path):
    with pytest.raises(SepoError, match=r"cannot go on from .*t-00000002: .*newer") as caught:
        resume(newer=Part())
    assert caught.value.hint.endswith(f"or delete {tmp_path / 'checkpoints'} to train anew")


def test_a_file_that_was_not_written_with_a_checkpoint_is_not_loaded(resume, tmp_path):
    """accelerate prefers it to the weights that it wrote itself."""
    of_run = (Accelerator(cpu=True), tmp_path / "checkpoints", "t", 1, "sha256:one")
    Checkpoints(*of_run, {"part": Part()}).save(2)
    checkpoint = tmp_path / "checkpoints/t-00000002"
    (checkpoint / ".DS_Store").touch()
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(
        SepoError, match=r"t-00000002 holds model\.safetensors, which was not written with it"
    ) as caught:
        Checkpoints(*of_run, {"part": Part()}).resume(Quiet(), 4)
    assert caught.value.hint == "remove it, and run the same again"
    (checkpoint / "model.safetensors").unlink()
    assert Checkpoints(*of_run, {"part": Part()}).resume(Quiet(), 4) == 2


@pytest.mark.parametrize("fault", ["flipped", "cut"])
def test_a_large_file_is_not_hashed_and_yet_believed_only_whole(tmp_path, monkeypatch, fault):
    """Its size is written down, and torch's format holds a CRC of every tensor, which torch itself does not look at."""
    path = tmp_path / "weights.bin"
    torch.save({"weight": torch.arange(10_000)}, path)
    monkeypatch.setattr(checksums, "LARGE_BYTES", 1 << 10)
    checksums.write_checksums(tmp_path, "sha256:one")
    assert checksums.read_checksums(tmp_path)["files"] == {"weights.bin": path.stat().st_size}
    assert checksums.fault_in(tmp_path) == ""
    data = bytearray(path.read_bytes())
    if fault == "flipped":
        data[len(data) // 2] ^= 1
        torch.load(io.BytesIO(data))
    path.write_bytes(data[:-1] if fault == "cut" else data)
    assert checksums.fault_in(tmp_path) == "weights.bin"


def test_what_is_no_checkpoint_is_passed_over_and_stays(resume, tmp_path):
    for name in ("t-notes", "t-00000009.old"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints/t-00000008").touch()
    assert resume(part=Part()) == 2
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4
