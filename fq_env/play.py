"""A person plays a level in the terminal: `python -m fq_env.play level=1`, or `python -m fq_env.play 1`.

Options: `level`, `split` (train, validation, test), `instance`, `seed`, `exposure`; `--help` lists the levels. Reads lines, so
a pipe can play too.
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
import textwrap
from typing import Any

import numpy as np

from fq_env.env import FunctionQuestEnv, read_options
from fq_env.errors import FQError
from fq_env.level import ExplicitLevel, load_level
from fq_env.level_files import LEVELS
from fq_env.oracle import exact_best
from fq_env.players import play
from fq_env.render import PARTS, seconds, slot_words
from pit import layout
from pit.errors import PitError

OPTIONS = {"level": "1", "split": "train", "instance": None, "seed": None, "exposure": None}
GOAL = (
    "Goal: get done all that is not optional: well, soon, at little cost, with few failed calls. "
    "The score (0 to 1) counts all four."
)
HELP = "Type the number of your choice, h for a hint, s to see everything, q to quit."
USAGE = f"""usage: python -m fq_env.play [level=]LEVEL [split=train|validation|test] [instance=N] [seed=N]
                              [exposure=hidden|partial|full]

{GOAL}
Each turn lists what can be begun now, and how long it is thought to take.
{HELP}

LEVEL is the file of a level, or the number of one of these:
"""


def read_arguments(words: list[str]) -> dict[str, Any]:
    """`["level=11", "seed=3"]` as `{"level": 11, "split": "train", "instance": int, "exposure": None}`.

    Without an instance, the seed names one; without a seed, chance does. Raises FQError for anything else.
    """
    chosen: dict[str, Any] = dict(OPTIONS)
    given: set[str] = set()
    for word in words:
        key, _, value = word.partition("=") if "=" in word or word.startswith("-") else ("level", "=", word)
        if key not in OPTIONS or not value:
            near = difflib.get_close_matches(key, OPTIONS, n=1) or ["level"]
            raise FQError(f"{word!r} is no option; options are {', '.join(f'{o}=' for o in OPTIONS)} for example {near[0]}=1")
        if key in given:
            raise FQError(f"{word!r} gives {key} once more; leave one out")
        given.add(key)
        chosen[key] = value
    for key in ("instance", "seed"):
        if chosen[key] is not None:
            if not chosen[key].isdecimal():
                raise FQError(f"{key}={chosen[key]} is not valid; {key} must be an integer >= 0")
            chosen[key] = int(chosen[key])
    if chosen["level"].isdecimal():
        chosen["level"] = int(chosen["level"])
    seed = chosen.pop("seed")
    if chosen["instance"] is None:
        chosen["instance"] = int(np.random.default_rng(seed).integers(1_000_000))
    return chosen


def usage() -> str:
    """What the game is, how it is played, and which levels there are."""
    levels = [load_level(number) for number in sorted(LEVELS)]
    lines = [f"{level.number:4}  {level.title}: {level.teaching}" for level in levels]
    return USAGE + "\n".join(textwrap.fill(line, 100, subsequent_indent=" " * 6) for line in lines)


class Game:
    """One episode between a person and an environment, on standard input and output."""

    def __init__(self, level: int | str, split: str, instance: int, exposure: str | None) -> None:
        self.level = load_level(level)
        if isinstance(self.level, ExplicitLevel):
            raise FQError(f"level {level!r} has explicit stages, which is nothing for people; play {self.level.number}")
        self.split, self.instance = split, instance
        read_options({"split": split, "instance": instance})
        self.env = FunctionQuestEnv(self.level, exposure=exposure, render_mode="ansi")
        self.env.reset(options={"split": split, "instance": instance})

    def run(self) -> None:
        """Plays to the end; EOFError or KeyboardInterrupt end it early."""
        print(f"{self.level.title}\n{self.level.teaching}\n{GOAL}\nInstance {self.instance} of split {self.split}. {HELP}")
        ended, info = False, dict[str, Any]()
        begun: dict[int, float] = {}
        while not ended:
            before = self.env.view()
            action = self.ask(before)
            if action is None:
                return
            *_, terminated, truncated, info = self.env.step(action)
            after = self.env.view()
            print("\n".join(consequences(before, after, begun)))
            ended = terminated or truncated
        print("\n" + "\n".join(self.result(info)))

    def ask(self, view: dict[str, Any]) -> int | None:
        """The action that the person chooses; None to quit."""
        choices = actions(view, self.env.action_masks())
        print(f"\nClock {seconds(view['now'])}.")
        for number, (_, words) in enumerate(choices, start=1):
            print(f"  {number}  {words}")
        while True:
            answer = read_line("> ").strip().lower()
            if answer == "q":
                return None
            if answer == "h":
                print(self.level.hint)
            elif answer == "s":
                print(self.env.render())
            elif answer.isdecimal() and 1 <= int(answer) <= len(choices):
                return choices[int(answer) - 1][0]
            else:
                print(f"{answer!r} is no choice: type a number from 1 to {len(choices)}, h, s or q.")

    def result(self, info: dict[str, Any]) -> list[str]:
        """The score with its parts, beside others' on the same instance."""
        rule = play(self.level, "critical_path", split=self.split, n=1, first=self.instance)[0]
        rows = [("you", info), ("critical path rule", rule)]
        lines = [
            "Solved." if info["is_success"] else "Not solved.",
            f"{'':19}{'total':>8}" + "".join(f"{p:>13}" for p in PARTS),
        ]
        lines += [f"{who:19}{row['total']:8.3f}" + "".join(f"{row[p]:13.3f}" for p in PARTS) for who, row in rows]
        if self.level.system.order_hidden:
            lines.append(f"{'best possible':19}{exact_best(self.level, self.split, self.instance):8.3f}")
        return lines


def read_line(prompt: str) -> str:
    """`input`, which also shows what a pipe answered."""
    line = input(prompt)
    if not sys.stdin.isatty():
        print(line)
    return line


def actions(view: dict[str, Any], mask: np.ndarray) -> list[tuple[int, str]]:
    """The legal actions as (action, words), in the order of their numbers."""
    slots = {slot["slot"]: slot for slot in view["slots"]}
    verbs = {int(a) % layout.N_VERBS for a in np.flatnonzero(mask[: layout.WAIT])}
    named = []
    for action in np.flatnonzero(mask).tolist():
        if action >= layout.WAIT:
            words = "wait until something happens" if action == layout.WAIT else layout.action_name(action)
        else:
            slot, verb = slots[action // layout.N_VERBS], layout.VERBS[action % layout.N_VERBS]
            words = slot_words(slot) + (f", {verb}" if verbs != {layout.STANDARD} else "")
        named.append((action, words))
    return named


def consequences(before: dict[str, Any], after: dict[str, Any], begun: dict[int, float]) -> list[str]:
    """What one action brought about, in words; `begun` notes when the calls in flight were asked for (task -> seconds)."""
    lines = []
    for old, new in zip(before["tasks"], after["tasks"], strict=True):
        tried, ended = new["attempts"] > old["attempts"], new["state"] == "done" != old["state"]
        if tried or ended:
            took = seconds(after["now"] - begun.pop(new["index"], before["now"]))
            lines.append(
                f"{new['function']} {'took ' + took + ' and yielded nothing' if tried else 'worked; it took ' + took}."
            )
        elif new["state"] == "running" != old["state"]:
            begun[new["index"]] = before["now"]
            lines.append(f"{new['function']} has begun.")
    return lines or [f"Time passes: {seconds(after['now'] - before['now'])}."]


def main(words: list[str] | None = None) -> int:
    """Plays as the command line asks; 0, 2 with one sentence on stderr for a mistake in it, or 141 if nobody reads on."""
    words = sys.argv[1:] if words is None else words
    try:
        if {"-h", "--help"} & set(words):
            print(usage(), flush=True)
            return 0
        game = Game(**read_arguments(words))
        try:
            game.run()
        except (EOFError, KeyboardInterrupt):
            print("\nGoodbye.")
        sys.stdout.flush()
    except PitError as mistake:
        print(mistake, file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return 128 + signal.SIGPIPE
    return 0


if __name__ == "__main__":
    sys.exit(main())
