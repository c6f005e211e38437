"""A person at the terminal, here a pipe: choices, hints, mistakes, the end, and leaving early."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fq_env import play
from fq_env.errors import FQError

ROOT = Path(__file__).resolve().parents[2]


def terminal(lines: str, *words: str) -> subprocess.CompletedProcess[str]:
    """One run of the command, with these lines on its standard input."""
    command = [sys.executable, "-m", "fq_env.play", *words]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=300, cwd=ROOT)
    notice = "Function Quest compiles its kernels"  # on a machine that has never run them
    done.stderr = "".join(line for line in done.stderr.splitlines(keepends=True) if not line.startswith(notice))
    return done


def test_a_pipe_plays_level_1_to_its_end():
    done = terminal("h\nnonsense\ns\n" + "1\n2\n3\n" * 300, "level=1", "split=validation", "instance=3")
    assert done.returncode == 0 and done.stderr == ""
    assert "Instance 3 of split validation" in done.stdout and "'nonsense' is no choice" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()[-4:]) <= 80
    for words in ("clock", "yielded nothing", "total", "critical path rule", "best possible"):
        assert words in done.stdout


@pytest.mark.parametrize("lines", ["", "1\n", "q\n"])
def test_leaving_early_is_clean(lines):
    done = terminal(lines, "level=1", "seed=0")
    assert done.returncode == 0 and done.stderr == "" and "total" not in done.stdout


@pytest.mark.parametrize(
    ("word", "words"),
    [("level=99", "99"), ("levle=1", "level="), ("level", "level"), ("split=tset", "tset"), ("instance=-1", "-1"),
     ("exposure=all", "all"), ("level=no/such.yaml", "no/such.yaml"), ("--foo", "'--foo' is no option"),
     ("1 2", "'2' gives level once more")],
)  # fmt: skip
def test_a_mistake_is_one_sentence_and_exit_code_2(word, words):
    done = terminal("", *word.split())
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_tells_the_goal_and_the_levels(word):
    done = terminal("", word)
    assert done.returncode == 0 and done.stderr == ""
    for words in ("usage: python -m fq_env.play", "Goal: ", "q to quit", "  11  The warm forge: "):
        assert words in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 130
    assert play.GOAL in terminal("q\n", "11").stdout


def test_a_reader_who_leaves_ends_the_game_without_a_word():
    command = [sys.executable, "-m", "fq_env.play", "1", "seed=0"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=ROOT, **pipes) as process:
        process.stdout.close()
        process.stdin.write("1\n")
        process.stdin.close()
        err = process.stderr.read()
    assert process.returncode == 141 and "Traceback" not in err and "BrokenPipe" not in err


def test_a_seed_names_an_instance():
    assert play.read_arguments(["seed=5"]) == play.read_arguments(["seed=5"])
    assert play.read_arguments(["seed=5"])["instance"] != play.read_arguments(["seed=6"])["instance"]
    assert play.read_arguments(["level=11", "instance=7"])["instance"] == 7
    with pytest.raises(FQError, match="seed=x"):
        play.read_arguments(["seed=x"])
