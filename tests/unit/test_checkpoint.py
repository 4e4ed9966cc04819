"""Checkpoints: the newest complete one is found, older ones go, nothing is half-written."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from trillium.errors import UserError
from trillium.federation.checkpoint import Checkpoints, dump, load


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_and_the_one_before_stay(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "kept")
    assert kept.newest("a") is None
    for number in (0, 2, 4, 6):
        kept.keep("a", number, {"x": torch.tensor([number])})
        kept.keep("a-b", number, number)
    assert files(tmp_path / "kept") == ["a-b@4.pt", "a-b@6.pt", "a@4.pt", "a@6.pt"]
    found = kept.newest("a")
    assert found is not None
    assert found[0] == 6
    assert torch.equal(found[1]["x"], torch.tensor([6]))


def test_a_side_goes_back_to_a_round_or_before(tmp_path: Path) -> None:
    Checkpoints(tmp_path).keep("a", 3, "three")
    Checkpoints(tmp_path).keep("a", 5, "five")
    again = Checkpoints(tmp_path)
    assert again.newest("a", 4) == (3, "three")
    assert again.newest("a", 5) == (5, "five")
    assert again.newest("a", 2) is None
    # What was kept of a later round is written again, and what came before it is still there.
    again.keep("a", 4, "four")
    assert again.newest("a", 4) == (4, "four")
    again.clear()
    assert not tmp_path.exists()
    assert again.newest("a") is None


def test_a_name_is_not_a_pattern(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.keep("client-[0]*", 1, 1)
    kept.keep("client-0", 1, 0)
    assert Checkpoints(tmp_path).newest("client-[0]*") == (1, 1)


def test_only_tensors_and_plain_values_are_read(tmp_path: Path) -> None:
    plain = {"t": torch.ones(2), "n": [1, 2.5, "x", None, True], "d": {0: {"step": torch.ones(())}}}
    assert load(dump(plain))["n"] == plain["n"]
    path = tmp_path / "a@1.pt"
    torch.save(Path("/"), path)
    with pytest.raises(UserError, match="cannot be read"):
        Checkpoints(tmp_path).newest("a")
    path.write_bytes(pickle.dumps(print))
    with pytest.raises(UserError, match="Remove the file"):
        Checkpoints(tmp_path).newest("a")


def test_a_failed_write_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoints(tmp_path)
    kept.keep("a", 1, "one")
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        kept.keep("a", 2, "two")
    assert files(tmp_path) == ["a@1.pt"]
    assert kept.newest("a") == (1, "one")


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    kept, path = Checkpoints(tmp_path), tmp_path / "a@1.pt"
    kept.keep("a", 1, {"x": torch.arange(100.0)})
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match="its digest is another"):
            kept.newest("a")
    path.write_bytes(whole)
    assert kept.newest("a") is not None


def test_states_are_for_their_owner_alone(tmp_path: Path) -> None:
    Checkpoints(tmp_path / "kept").keep("a", 1, 1)
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "kept" / "a@1.pt").stat().st_mode & 0o777 == 0o600
