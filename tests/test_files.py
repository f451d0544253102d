"""Files written whole or not at all, the lock, and journals that survive a crash."""

import json
import os
import signal
import subprocess
import sys

import pytest

from selfcorrect.errors import DataError, EngineError, RunError
from selfcorrect.records.files import (
    append_line,
    claim,
    cut_torn_line,
    lock,
    only_writer,
    read_journal,
    read_jsonl,
    replacing,
    write_jsonl,
)


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), EngineError("no room", usable=True)])
def test_a_file_that_could_not_be_written_leaves_the_old_one_and_nothing_else(tmp_path, fault):
    target = tmp_path / "out"
    write_jsonl(target, [{"a": 1}, {"a": "é"}], "")
    assert target.read_bytes() == b'{"a": 1}\n{"a": "\\u00e9"}\n'
    with pytest.raises(RunError, match=r"model .*out could not be written: no.*; do this"):  # noqa: SIM117
        with replacing(target, "do this", "model") as part:
            part.write_text("half")
            raise type(fault)(28, "no space") if isinstance(fault, OSError) else fault
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and target.read_text().startswith('{"a": 1}')


def test_a_lost_engine_is_not_called_a_full_disk(tmp_path):
    with pytest.raises(EngineError), replacing(tmp_path / "out", "") as part:
        part.mkdir()
        raise EngineError("lost", usable=False)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_replaces_an_older_one_and_what_a_crash_left(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    (tmp_path / ".out.part").mkdir()
    with replacing(tmp_path / "out", "") as part:
        part.mkdir()
        (part / "new").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "new"]


def test_an_output_path_is_claimed_before_any_work(tmp_path):
    claim(tmp_path / "a" / "out")
    assert list((tmp_path / "a").iterdir()) == []
    (tmp_path / "a" / ".out.part" / "half").mkdir(parents=True)  # of a process that was killed while it wrote a model
    claim(tmp_path / "a" / "out")
    assert list((tmp_path / "a").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is not overwritten"):
        claim(tmp_path / "file")
    with pytest.raises(RunError, match="is a file, not a directory"):
        claim(tmp_path / "file" / "out")


def test_a_second_writer_that_waits_goes_on_when_the_first_has_ended(tmp_path):
    code = (
        "import sys, time, pathlib; from selfcorrect.records.files import only_writer\n"
        "with only_writer(pathlib.Path(sys.argv[1])):\n"
        "    print('up', flush=True); time.sleep(0.3); pathlib.Path(sys.argv[1], 'done').touch()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with only_writer(tmp_path, wait=True):
            assert (tmp_path / "done").exists()


def test_a_second_writer_is_refused_at_once_and_a_killed_one_releases_the_lock(tmp_path):
    code = (
        "import sys, time, pathlib; from selfcorrect.records.files import only_writer\n"
        "with only_writer(pathlib.Path(sys.argv[1])): print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(RunError, match="another process is writing to"), only_writer(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with only_writer(tmp_path), (tmp_path / ".lock").open() as second, pytest.raises(RunError, match="another process"):
        lock(second, tmp_path)
    with pytest.raises(RunError, match=r"none cannot be written"), only_writer(tmp_path / "none"):
        pass


def test_a_journal_loses_its_torn_line_and_nothing_else(tmp_path):
    file = tmp_path / "journal"
    assert read_journal(file, json.loads, "") == []
    for n in range(3):
        append_line(file, json.dumps({"n": n}), "")
    whole = file.read_bytes()
    for torn in ('{"n": 3', '{"n": 3}', '{"t": "é'):  # whole JSON without its line end was cut as well
        file.write_bytes(whole + torn.encode()[:-1] if torn.endswith("é") else whole + torn.encode())
        assert [row["n"] for row in read_journal(file, json.loads, "")] == [0, 1, 2]
        cut_torn_line(file)
        assert file.read_bytes() == whole
    append_line(file, '{"n": 3}', "")
    assert len(read_journal(file, json.loads, "")) == 4
    file.write_bytes(b'{"n"\n' + whole)
    with pytest.raises(RunError, match=r"journal, line 1 cannot be read: .*; delete it"):
        read_journal(file, json.loads, "delete it")
    with pytest.raises(RunError, match="could not be written"):
        append_line(tmp_path / "no" / "such", "x", "")


def test_a_bad_line_is_named_with_its_number_in_the_file(tmp_path):
    file = tmp_path / "rows"
    file.write_text('{"a": 1}\n\n[2]\n')
    rows = read_jsonl(file, "make it", "measure again")
    assert next(rows) == (f"{file} line 1", {"a": 1})
    with pytest.raises(DataError, match="line 3 is not a JSON object but a list; measure again"):
        next(rows)
    os.unlink(file)
    with pytest.raises(DataError, match="does not exist; make it"):
        next(read_jsonl(file, "make it"))
