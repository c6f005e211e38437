"""Records the decisions of an episode: what the agent chose, and what the Pit made of it (`pit/record.py` has the columns).

The kernel plays a step in one go and keeps no account of it. So each step is played twice: by a double of the environment,
event by event in Python as the rule page (`fq_env/README.md`, section 1) says, and by the engine itself, whose state and
reward are recorded; the two are compared after each step. Slow: for records, never for training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fq_env import world
from fq_env.engine import Engine, Player
from fq_env.errors import FQError
from fq_env.state import AUTORESETS, DUE, LEVEL, SPLITS, level_at, world_at
from pit import layout
from pit.compiled import announce, entry
from pit.interface import RULE, drive
from pit.layout import CMD_UNLOAD, NEVER, ON
from pit.record import Row
from pit.state import pit_at
from pit.trace import Names, Trace

CARRY_OUT, HAPPEN = range(2)
# What the double and the engine must agree on after each step.
SAME = ("now", "status", "next_call", "n_calls", "n_ready", "required_left", "spent", "committed", "warnings", "ignored")
# Answers the next action of the engine's one environment.
Choose = Callable[[Engine], int]


@entry
def turn(address: Any, level: Any, operation: Any) -> Any:
    """The environment at `address`, of the level at `level`: its commands are carried out, or its next event happens."""
    s = pit_at(address)
    w = world_at(address + s.size)
    if operation == HAPPEN:
        world.happen(s, w, level_at(level))
    else:
        world.carry_out(s, w, level_at(level))
    return 0


class Double(Trace):
    """The double of an engine's one environment."""

    def __init__(self, engine: Engine) -> None:
        if engine.n != 1 or engine._engine["autoreset"][0] != AUTORESETS.index("disabled"):
            raise FQError("an episode is recorded from an engine with n = 1 and autoreset = 'disabled'; make one")
        announce("turn")
        system, block = engine.levels[0].system, engine.block
        names = Names(list(system.functions), list(system.pools), list(system.models), list(system.memory))
        self._engine = engine
        self._world = block.hidden(engine.memory[0])
        self._level = engine._levels.ctypes.data + int(self._world["level"][0]) * LEVEL.itemsize
        super().__init__(engine.memory[0].copy(), names)
        self._own = block.hidden(self.memory)
        self._due = block.rows(self.memory, "due_at", DUE, block.due)

    def _drain(self) -> None:
        """Notes the Pit's commands and carries them out, with those that follow at once from an unload."""
        said = int(self.hot["n_commands"][0])
        if said == 0:
            return
        commands = self.commands()
        commands["kind"][said:] = -1
        turn(self.address, self._level, CARRY_OUT)
        commands = commands[commands["kind"] >= 0]
        self._note(commands)
        self._events += int((commands["kind"] == CMD_UNLOAD).sum())  # the world answers these at once

    def follow(self, action: int) -> None:
        """One step, event by event: until the next decision is due, or the end."""
        self.act(action)
        while True:
            pending = int(self._own["n_due"][0])
            when = int(self._due[pending - 1]["when"]) if pending else NEVER
            timer = self.next_timer()
            if (min(when, timer) > self.now and self.decision_due()) or self.hot["status"][0] != ON:
                return
            if timer <= when:
                if timer == NEVER:  # the kernel ends the episode here
                    self.hot["status"] = layout.FAILED
                    return
                self.advance(timer)
            else:
                self.advance(when)
                ignored = int(self.hot["ignored"][0])
                turn(self.address, self._level, HAPPEN)
                self._events += int(self.hot["ignored"][0]) == ignored
                self._drain()

    def catch_up(self) -> None:
        """Goes on from the engine's own memory. Raises RuntimeError if the double has come to another state."""
        theirs = self._engine.block.hot(self._engine.memory[0])
        differing = [name for name in SAME if theirs[name][0] != self.hot[name][0]]
        if differing:
            raise RuntimeError(f"the recorder and the kernel differ in {', '.join(differing)}: one leaves the rule page")
        self.memory[:] = self._engine.memory[0]


def chooser(player: Player, seed: int) -> Choose:
    """A player of `fq_env.players` one action at a time; `seed` is that of `random`."""
    if player.code < 0:
        rng = np.random.default_rng(seed)
        return lambda engine: int(rng.choice(np.flatnonzero(engine.masks[0])))
    seen, mask = np.zeros(layout.N_OBSERVATION, np.float32), np.zeros(layout.N_ACTIONS, np.uint8)
    weights = 0 if player.weights is None else player.weights.ctypes.data

    def choose(engine: Engine) -> int:
        looks = (player.variant, seen.ctypes.data, mask.ctypes.data, player.theta, weights)
        return int(drive(engine.memory.ctypes.data, RULE, player.code, *looks))

    return choose


def record_episode(engine: Engine, choose: Choose, *, player: str, by: str) -> Iterator[Row]:
    """Plays the running episode of an engine to its end and gives the row of each decision.

    Args:
        engine: n = 1, autoreset `disabled`, after a reset.
        choose: answers the actions.
        player: the column of that name.
        by: `policy`, `rule` or `random`.

    Raises:
        FQError: an engine of another kind.
    """
    double = Double(engine)
    world_record, level = engine.block.hidden(engine.memory[0])[0], engine.levels[0].name
    split, instance = SPLITS[world_record["split"]], int(world_record["instance"])
    about = {
        "source": "game",
        "run": f"{level}/{split}/{instance}",
        "level": level,
        "split": split,
        "instance": instance,
        "workflow": None,
        "player": player,
        "by": by,
        "note": "",
    }
    exposure = layout.EXPOSURES[engine._engine["exposure"][0]]
    before, ended = double.state(), False
    while not ended:
        action = choose(engine)
        double.begin(before, action, exposure, **about)
        double.follow(action)
        ended = bool(engine.step_one(action))
        double.catch_up()
        after = double.state()
        yield double.finish(after, float(engine.rewards[0]))
        before = after
