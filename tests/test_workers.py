"""Jobs in processes beside each other."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from saekit import workers


def in_processes(function, jobs, **options):
    workers.in_processes(function, jobs, names=[f"job {i}" for i in range(len(jobs))], **options)


def test_every_result_comes_with_its_position():
    ended = {}
    in_processes(divmod, [(7, 2), (9, 4), (5, 5)], workers=2, on_end=ended.__setitem__)
    assert ended == {0: (3, 1), 1: (2, 1), 2: (1, 0)}


def test_a_job_that_fails_does_not_keep_the_others_from_ending(tmp_path):
    there = tmp_path / "there"
    jobs = [(tmp_path / "missing" / "folder",), (there,), (there / "below",)]
    with pytest.raises(FileNotFoundError):
        in_processes(os.mkdir, jobs, workers=1, on_end=lambda position, _: None)
    assert (there / "below").is_dir()


def test_threads_are_those_asked_for_also_in_processes_of_the_job():
    ended = {}
    in_processes(torch.get_num_threads, [()], workers=1, threads=3, on_end=ended.__setitem__)
    in_processes(
        os.getenv, [("OMP_NUM_THREADS",)], workers=1, threads=3, on_end=lambda _, v: ended.update(env=v)
    )
    assert ended == {0: 3, "env": "3"}


def test_no_jobs_start_no_process():
    in_processes(divmod, [], workers=2, on_end=None)


def killed(path):
    """Let the other process begin, then die as the kernel kills what takes too much memory."""
    while not path.exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


def wrote(path, seconds):
    path.write_text("begun")
    time.sleep(seconds)
    return path.name


@pytest.mark.slow
def test_a_process_that_is_killed_is_named_and_the_others_go_on(tmp_path):
    ended = {}
    jobs = [(killed, tmp_path / "a"), (wrote, tmp_path / "a", 2), (wrote, tmp_path / "b", 0)]
    with pytest.raises(RuntimeError, match=r"^The process of job 0 was killed \(SIGKILL\), most likely"):
        in_processes(call, jobs, workers=2, on_end=ended.__setitem__)
    assert ended == {1: "a", 2: "b"}


def call(function, *arguments):
    return function(*arguments)


class Picky(Exception):
    """An error that cannot be unpickled: its constructor wants more than its arguments."""

    def __init__(self, one, other):
        super().__init__(one + other)


def picky():
    raise Picky("this ", "went wrong")


@pytest.mark.slow
def test_results_and_errors_that_cannot_be_sent_are_errors_of_their_job(tmp_path):
    ended = {}
    jobs = [(picky,), (threading.Lock,), (os._exit, 3), (len, "four")]
    with pytest.raises(RuntimeError, match="Picky: this went wrong") as error:
        in_processes(call, jobs, workers=1, on_end=ended.__setitem__)
    notes = " ".join(error.value.__notes__)
    assert "in picky" in notes
    assert "cannot pickle" in notes
    assert "The process of job 2 ended with code 3" in notes
    assert ended == {3: 4}


PROCESS = """
import os, sys, time
from saekit.workers import in_processes
def work(path):
    with open(path + ".tmp", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".tmp", path)
    time.sleep(600)
if __name__ == "__main__":
    in_processes(work, [(f"{sys.argv[1]}/{i}",) for i in range(3)], names="012", workers=2, on_end=print)
"""


@pytest.mark.slow
def test_a_process_that_is_terminated_ends_its_workers_and_begins_no_job(tmp_path):
    (tmp_path / "script.py").write_text(PROCESS)
    process = subprocess.Popen([sys.executable, tmp_path / "script.py", tmp_path])
    try:
        began = [tmp_path / "0", tmp_path / "1"]
        deadline = time.monotonic() + 120
        while not all(file.exists() for file in began):
            assert time.monotonic() < deadline, "the workers did not begin"
            time.sleep(0.1)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    for file in began:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)
    assert not (tmp_path / "2").exists()
