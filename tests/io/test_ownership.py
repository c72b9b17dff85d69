"""Files that this user alone can have written."""

import os
import re
import subprocess

import pytest

from sv3d_jax.io.ownership import NotOwn, check_own_files, make_own_folder, read_own_file


@pytest.fixture
def folder(tmp_path):
    make_own_folder(tmp_path / "above" / "own")
    return tmp_path / "above" / "own"


def test_an_own_file_is_read(folder):
    (folder / "a").write_bytes(b"content")
    assert read_own_file(folder / "a") == b"content"
    check_own_files(folder)


def test_a_missing_file_is_an_error_of_the_system(folder):
    with pytest.raises(FileNotFoundError):
        read_own_file(folder / "a")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / "a", 0o600)
    with pytest.raises(NotOwn, match="not a regular file"):
        read_own_file(folder / "a")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has neither owners nor these permissions")
class TestOnUnix:
    def test_a_new_folder_is_entered_by_its_user_alone(self, folder):
        assert folder.stat().st_mode & 0o777 == 0o700

    def test_files_that_a_group_may_write_do_where_it_cannot_enter(self, folder):
        (folder / "a").touch()
        (folder / "a").chmod(0o660)
        check_own_files(folder)
        folder.chmod(0o750)
        with pytest.raises(NotOwn, match="a may be written by other users"):
            check_own_files(folder)

    @pytest.mark.parametrize("fault", ["folder", "file in a folder that others enter"])
    def test_the_remedy_holds_for_files_made_later(self, fault, folder):
        """Where the umask lets a group write, every file that jax keeps is such a file."""
        folder = folder.rename(folder.with_name("my own"))
        before = os.umask(0o002)
        try:
            folder.chmod(0o770 if fault == "folder" else 0o755)
            (folder / "a").touch()
            with pytest.raises(NotOwn) as refused:
                make_own_folder(folder)
                check_own_files(folder)
            remedy = re.search(r"\((.*) makes it yours alone\)", str(refused.value))[1]
            subprocess.run(remedy, shell=True, check=True)
            (folder / "b").touch()
        finally:
            os.umask(before)
        make_own_folder(folder)
        check_own_files(folder)

    def test_a_file_that_a_group_may_write_is_not_read_until_its_remedy(self, folder):
        (folder / "a").write_bytes(b"content")
        (folder / "a").chmod(0o660)
        with pytest.raises(NotOwn) as refused:
            read_own_file(folder / "a")
        remedy = re.search(r"\((.*) makes it yours alone\)", str(refused.value))[1]
        subprocess.run(remedy, shell=True, check=True)
        assert read_own_file(folder / "a") == b"content"

    def test_links_and_files_of_others_do_nowhere(self, folder, monkeypatch):
        (folder / "a").symlink_to(folder)
        with pytest.raises(NotOwn, match="a is a symbolic link"):
            check_own_files(folder)
        (folder / "a").unlink()
        (folder / "a").touch()
        monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
        with pytest.raises(NotOwn, match="a belongs to another user"):
            check_own_files(folder)


def test_without_user_ids_the_home_folder_is_the_users(folder, monkeypatch):
    (folder / "a").write_bytes(b"content")
    monkeypatch.delattr(os, "getuid", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: folder.parent)
    assert read_own_file(folder / "a") == b"content"
    monkeypatch.setattr("pathlib.Path.home", lambda: folder / "elsewhere")
    with pytest.raises(NotOwn, match="outside the home folder"):
        read_own_file(folder / "a")
