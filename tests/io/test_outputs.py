"""Output folders: atomic files, the lock, resuming and the comparison of settings."""

import errno
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from sv3d_jax.errors import InputError, OutputError
from sv3d_jax.io.outputs import OutputFolder, check_finite, replacing, require_space, write_atomic

CONFIG = {"verb": "example", "steps": 50, "levels": {"sigma": 700.0}}


def run(directory, config=CONFIG, stages=("orbit", "mesh"), finish=True, **options):
    """A run of stages that write one file each; returns the stages that were executed."""
    worked = []
    with OutputFolder(directory, config, **options) as folder:
        for stage in stages:
            if not folder.stage_done(stage):
                write_atomic(folder.path(f"{stage}.bin"), f"{stage} {time.monotonic_ns()}")
                folder.finish_stage(stage, [f"{stage}.bin"])
                worked.append(stage)
        if finish and not folder.done:
            folder.write_run_json(seeds=[23])
    return worked


def test_a_disk_without_the_space_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("sv3d_jax.io.outputs.free_bytes", lambda path: 4_200_000)
    require_space(tmp_path, 4_200_000, "an orbit")
    with pytest.raises(OutputError, match="an orbit takes at least 5 MB, but 4.2 MB are free") as caught:
        require_space(tmp_path, 5_000_000, "an orbit")
    assert "free some space" in caught.value.hint


def test_a_full_disk_takes_no_output_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("sv3d_jax.io.outputs.free_bytes", lambda path: 0)
    with pytest.raises(OutputError, match="0 MB are free"):
        OutputFolder(tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_a_written_file_is_whole_and_leaves_no_temporary_one(tmp_path):
    write_atomic(tmp_path / "a" / "name.txt", "text")
    assert (tmp_path / "a" / "name.txt").read_text() == "text"
    assert os.listdir(tmp_path / "a") == ["name.txt"]


def test_a_failed_write_keeps_the_old_file_and_says_why(tmp_path, monkeypatch):
    write_atomic(tmp_path / "name.txt", "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="cannot write .*name.txt: No space left"):
        write_atomic(tmp_path / "name.txt", "new")
    assert (tmp_path / "name.txt").read_text() == "old" and os.listdir(tmp_path) == ["name.txt"]


def test_run_json_records_settings_facts_versions_and_timings(tmp_path):
    run(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["config"] == CONFIG and record["seeds"] == [23]
    assert set(record["timings_s"]) == {"orbit", "mesh"}
    assert record["packages"]["jax"] and record["peak_memory_bytes"] > 1e6
    assert ("device_peak_memory_bytes" in record) == ("jax" in sys.modules)


def test_the_same_settings_find_a_whole_run_and_leave_it_untouched(tmp_path):
    run(tmp_path / "out")
    before = {
        file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in (tmp_path / "out").glob("*.*")
    }
    assert run(tmp_path / "out") == []
    for name in ("orbit.bin", "mesh.bin", "run.json"):
        file = tmp_path / "out" / name
        assert (file.stat().st_mtime_ns, file.read_bytes()) == before[name]


def test_finished_stages_of_a_broken_run_are_not_repeated(tmp_path):
    run(tmp_path / "out", stages=["orbit"], finish=False)
    kept = (tmp_path / "out" / "orbit.bin").read_bytes()
    assert run(tmp_path / "out") == ["mesh"]
    assert (tmp_path / "out" / "orbit.bin").read_bytes() == kept


@pytest.mark.parametrize("damage", ["removed", "truncated"])
def test_a_stage_whose_file_is_gone_or_cut_is_repeated(tmp_path, damage):
    run(tmp_path / "out")
    file = tmp_path / "out" / "mesh.bin"
    file.unlink() if damage == "removed" else file.write_bytes(b"")
    assert run(tmp_path / "out") == ["mesh"]


DAMAGED_RECORDS = {
    "no JSON": "{",
    "deep": "[" * 100_000,
    "a list": "[]",
    "no settings": '{"stages": {}}',
    "settings of another shape": '{"config": [], "stages": {}}',
    "stages of another shape": json.dumps({"config": CONFIG, "stages": [1]}),
    "a stage of another shape": json.dumps({"config": CONFIG, "stages": {"orbit": {"files": {}}}}),
    "files of another shape": json.dumps(
        {"config": CONFIG, "stages": {"orbit": {"seconds": 0, "facts": {}, "files": ["orbit.bin"]}}}
    ),
}


@pytest.mark.parametrize("text", DAMAGED_RECORDS.values(), ids=DAMAGED_RECORDS)
@pytest.mark.parametrize("finish", [False, True])
def test_what_a_damaged_record_said_is_made_again(tmp_path, text, finish):
    run(tmp_path / "out", finish=finish)
    (tmp_path / "out" / ".stages.json").write_text(text)
    assert run(tmp_path / "out") == ["orbit", "mesh"]
    assert run(tmp_path / "out") == []


def test_a_changed_byte_of_a_record_is_noticed(tmp_path):
    run(tmp_path / "out")
    path = tmp_path / "out" / ".stages.json"
    path.write_text(path.read_text().replace('"facts"', '"factz"', 1))
    assert run(tmp_path / "out") == ["orbit", "mesh"]
    path.write_text(path.read_text().replace('"seconds": ', '"seconds": 1', 1))
    assert run(tmp_path / "out") == ["orbit", "mesh"]


def test_a_run_made_again_is_not_whole_before_its_end(tmp_path):
    run(tmp_path / "out")
    (tmp_path / "out" / ".stages.json").write_text("{")
    run(tmp_path / "out", stages=["orbit"], finish=False)
    assert not (tmp_path / "out" / "run.json").exists()
    assert run(tmp_path / "out") == ["mesh"]


def test_other_settings_are_refused_with_what_differs(tmp_path):
    run(tmp_path / "out")
    other = {**CONFIG, "steps": 20, "levels": {"sigma": 80.0}}
    with pytest.raises(InputError, match=r"steps was 50, is 20; levels.sigma was 700.0, is 80.0") as caught:
        run(tmp_path / "out", other)
    assert caught.value.exit_code == 2 and "--overwrite" in caught.value.hint


def test_of_many_settings_that_differ_three_are_named(tmp_path):
    run(tmp_path / "out")
    with pytest.raises(
        InputError, match=r"steps was 50, is 9; a was None, is 1; b was None, is 2 and 3 more$"
    ):
        run(tmp_path / "out", {**CONFIG, "steps": 9, "a": 1, "b": 2, "c": 3, "d": 4, "e": 5})


def test_overwrite_begins_afresh_and_removes_only_its_own_files(tmp_path):
    run(tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert run(tmp_path / "out", {"verb": "other"}, stages=["orbit"], overwrite=True) == ["orbit"]
    assert sorted(file.name for file in (tmp_path / "out").glob("[!.]*")) == [
        "mine.txt",
        "orbit.bin",
        "run.json",
    ]


def test_overwrite_does_not_follow_a_forged_record_outside(tmp_path):
    run(tmp_path / "out")
    (tmp_path / "precious").write_text("keep")
    record = tmp_path / "out" / ".stages.json"
    record.write_text(
        json.dumps(
            {"config": CONFIG, "stages": {"x": {"seconds": 0, "facts": {}, "files": {"../precious": 4}}}}
        )
    )
    run(tmp_path / "out", overwrite=True)
    assert (tmp_path / "precious").read_text() == "keep"


def test_a_second_run_is_refused_with_the_holder_and_a_dead_one_is_not(tmp_path):
    script = (
        "import sys; from sv3d_jax.io.outputs import OutputFolder\n"
        "with OutputFolder(sys.argv[1], {}): print('held', flush=True); sys.stdin.read()"
    )
    directory = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", script, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match=f"in use by process {holder.pid} on .*, started 2") as caught:
            run(directory, {})
        assert caught.value.exit_code == 5
        holder.kill()
    assert run(directory, {}) == ["orbit", "mesh"]


def test_a_missing_parent_is_found_before_anything_is_made(tmp_path):
    with pytest.raises(OutputError, match="absent does not exist"):
        OutputFolder(tmp_path / "absent" / "out", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_parents_may_be_made_where_they_belong_to_the_run(tmp_path):
    assert run(tmp_path / "several" / "cat", below=tmp_path) == ["orbit", "mesh"]


def test_a_parent_that_cannot_be_written_is_found_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr(
        os, "access", lambda path, mode: False
    )  # root may write everywhere, so ask for the answer
    with pytest.raises(OutputError, match="cannot be written"):
        OutputFolder(tmp_path / "out", CONFIG)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is a file, not a folder"):
        OutputFolder(tmp_path / "out", CONFIG)


def test_checking_a_folder_writes_nothing(tmp_path):
    OutputFolder(tmp_path / "out", CONFIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [b"a b", b"caf\xe9"])  # a space; Latin-1, so not UTF-8
def test_any_folder_name_works(tmp_path, name):
    directory = tmp_path / os.fsdecode(name)
    assert run(directory) == ["orbit", "mesh"] and run(directory) == []


def test_a_link_to_a_folder_works(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert run(tmp_path / "link") == ["orbit", "mesh"] and run(tmp_path / "real") == []


def test_a_file_where_a_folder_should_be_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_atomic(tmp_path / "file" / "name.txt", "text")


def test_the_scratch_folder_goes_when_the_run_is_whole(tmp_path):
    with OutputFolder(tmp_path / "run", {"verb": "test"}) as folder:
        (folder.scratch / "state.npz").write_bytes(b"state")
        folder.write_run_json()
    assert not (tmp_path / "run" / ".work").exists()


def test_overwriting_forgets_what_an_unfinished_run_kept(tmp_path):
    with OutputFolder(tmp_path / "run", {"verb": "test"}) as folder:
        (folder.scratch / "state.npz").write_bytes(b"state")
    with OutputFolder(tmp_path / "run", {"verb": "test"}, overwrite=True) as folder:
        assert not (folder.scratch / "state.npz").exists()


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with a file in it, which no run may change."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "kept").write_text("kept")
    yield folder
    assert os.listdir(folder) == ["kept"] and (folder / "kept").read_text() == "kept"


@pytest.mark.parametrize("left", ["file", "link", "broken link"])
def test_what_a_killed_run_left_of_a_file_is_neither_followed_nor_in_the_way(tmp_path, elsewhere, left):
    temporary = tmp_path / "name.txt.tmp"
    temporary.write_text("half") if left == "file" else temporary.symlink_to(
        elsewhere / ("kept" if left == "link" else "new")
    )
    write_atomic(tmp_path / "name.txt", "whole")
    assert (tmp_path / "name.txt").read_text() == "whole" and not os.path.lexists(temporary)


def test_a_link_in_place_of_a_file_is_replaced_and_not_followed(tmp_path, elsewhere):
    (tmp_path / "name.txt").symlink_to(elsewhere / "kept")
    write_atomic(tmp_path / "name.txt", "new")
    assert not (tmp_path / "name.txt").is_symlink() and (tmp_path / "name.txt").read_text() == "new"


def test_a_write_that_is_broken_off_leaves_the_file_as_it_was(tmp_path):
    write_atomic(tmp_path / "name.txt", "old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "name.txt") as file:
        file.write(b"ne")
        raise KeyboardInterrupt
    assert (tmp_path / "name.txt").read_text() == "old" and os.listdir(tmp_path) == ["name.txt"]


OURS = ".lock .work frames alphas progress checkpoints data logs profile samples tensorboard wandb".split()


@pytest.mark.parametrize("place", OURS)
@pytest.mark.parametrize("target", [".", "kept", "new"])
def test_links_inside_the_folder_are_refused_before_anything_is_written(tmp_path, elsewhere, place, target):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / place).symlink_to(elsewhere / target)
    with pytest.raises(OutputError, match=f"{place} is a link to .*elsewhere"):
        OutputFolder(tmp_path / "out", CONFIG, overwrite=True)
    assert os.listdir(tmp_path / "out") == [place]


def test_a_link_between_the_folder_that_was_named_and_that_of_a_picture_is_refused(tmp_path, elsewhere):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "chairs").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="chairs is a link"):
        OutputFolder(tmp_path / "out" / "chairs" / "a", CONFIG, below=tmp_path / "out")


def test_a_lock_that_is_turned_into_a_link_later_is_refused_as_well(tmp_path, elsewhere):
    folder = OutputFolder(tmp_path / "out", CONFIG)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").symlink_to(elsewhere / "kept")
    with pytest.raises(OutputError, match="is a link"), folder:
        pass


@pytest.mark.parametrize("name", ["..", ".", "a/../..", "../out2"])
def test_a_folder_that_is_named_after_an_input_lies_inside_the_one_that_the_user_named(tmp_path, name):
    """The names of a file "...png" and of a file "..png" without their suffixes are ".." and "."."""
    with pytest.raises(InputError, match="is no folder inside"):
        OutputFolder(tmp_path / "out" / name, CONFIG, below=tmp_path / "out")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "files",
    [
        {"gone": None},
        {"orbit.bin": True},
        {"orbit.bin": -1.5},
        {"/etc/hostname": 1},
        {"../orbit.bin": 1},
    ],
)
def test_a_record_of_files_that_no_run_wrote_does_not_count(tmp_path, files):
    run(tmp_path, finish=False)
    record = json.loads((tmp_path / ".stages.json").read_text())
    del record["crc32"]
    record["stages"]["orbit"]["files"] = files
    (tmp_path / ".stages.json").write_text(json.dumps(record))
    assert run(tmp_path) == ["orbit", "mesh"]


@pytest.mark.parametrize("name", ["folder", "ring/file", "plain/file", "n" * 300])
def test_overwrite_passes_over_what_is_no_file_of_a_run(tmp_path, name):
    run(tmp_path, finish=False)
    (tmp_path / "folder").mkdir()
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    (tmp_path / "plain").write_text("mine")
    record = json.loads((tmp_path / ".stages.json").read_text())
    del record["crc32"]
    record["stages"]["orbit"]["files"] = {name: 3}
    (tmp_path / ".stages.json").write_text(json.dumps(record))
    assert run(tmp_path, overwrite=True) == ["orbit", "mesh"]
    assert (tmp_path / "plain").read_text() == "mine" and (tmp_path / "folder").is_dir()


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_link_to_nothing_is_told_before_work(tmp_path, target):
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(OutputError, match="is a link to .*, which does not exist"):
        OutputFolder(tmp_path / "link", CONFIG)


def test_two_writers_of_one_file_do_not_publish_each_others_half(tmp_path):
    with pytest.raises(OutputError, match="another process"), replacing(tmp_path / "a.bin") as first:
        first.write(b"first")
        (tmp_path / "a.bin.tmp").unlink()  # as another process does that begins to write
        (tmp_path / "a.bin.tmp").write_bytes(b"half of the sec")
    assert not (tmp_path / "a.bin").exists()


def test_no_numbers_are_finite_numbers():
    check_finite(np.zeros((0, 3)), "vertices")
    check_finite(np.zeros(0), "vertices")
