"""The queue of a sweep: Optuna studies in one journal file, from which every process takes its next training.

A process holds a lock on a file of its own while it lives; the kernel lets go of it however the process ends. A trial that
runs under a name whose lock is free was left behind: it is marked failed, and its parameters are tried again under a new
number. Locks are `flock`: every local file system has them, and network file systems such as NFS 4.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.errors import ExperimentError
from experiments.sweep.settings import read_definition
from experiments.sweep.space import distributions, label

TURN = "turn.lock"
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
DEFAULT = -1  # the number under which the configuration as given is confirmed
ATTEMPTS = 3  # at a trial whose process ends without a word, such as one that is killed for memory
PAUSE = 0.5  # s between two looks for work while others are at theirs


def _open_locked(path: Path, wait: bool) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time decides what is done next in a sweep's folder."""
    descriptor = _open_locked(folder / TURN, wait=True)
    try:
        yield
    finally:
        os.close(descriptor)


class JournalLock(JournalFileOpenLock):
    """The lock under which Optuna appends to its journal: never stale, and nothing is appended to a half-written line."""

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal

    def acquire(self) -> bool:
        """Waits for the lock, then cuts off what a killed process left unfinished."""
        self._descriptor = _open_locked(self._journal.with_suffix(".lock"), wait=True)
        with open(self._journal, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if file.read() not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Lets the next one append."""
        os.close(self._descriptor)


class Study:
    """One process's view of a sweep: what was tried, and what it may do next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lock_file = folder / "workers" / self.name
        self.definition = read_definition(folder)
        self.distributions = distributions(self.definition.space, self.definition.base)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        journal = folder / "journal.log"
        journal.touch()
        try:
            storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalLock(journal)))
        except ValueError as error:
            raise ExperimentError(f"{journal}: cannot be read ({error}); begin again in another folder") from None
        with alone(folder):
            self.search, self.confirmation = (
                optuna.create_study(
                    study_name=name,
                    storage=storage,
                    direction="maximize",
                    load_if_exists=True,
                    sampler=optuna.samplers.RandomSampler(seed=0),
                    pruner=optuna.pruners.MedianPruner(self.definition.startup),
                )
                for name in ("search", "confirmation")
            )
            if not self.search.get_trials(deepcopy=False):
                self.search.enqueue_trial(self.default, user_attrs={"default": True})

    @property
    def default(self) -> dict[str, Any]:
        """The values of the space's keys in the configuration as given, as Optuna knows them."""
        return {key: label(self.definition.base[key]) for key in self.definition.space}

    @property
    def wanted(self) -> int:
        """How many trials are to be complete or pruned; a later command may have changed it."""
        return read_definition(self.folder).trials

    def finished(self) -> list[FrozenTrial]:
        """The complete and the pruned trials of the search, in the order of their numbers."""
        return self.search.get_trials(deepcopy=False, states=DONE)

    def best(self) -> list[FrozenTrial]:
        """The complete trials, best first, one for each set of parameters."""
        trials = self.search.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        ranked = sorted(trials, key=lambda t: (-(t.value or 0.0), t.number))
        return [t for i, t in enumerate(ranked) if t.params not in [other.params for other in ranked[:i]]]

    def candidates(self) -> dict[int, dict[str, Any]]:
        """Number -> parameters of what is confirmed at the end: the configuration as given, and the best trials beside it."""
        best = [trial for trial in self.best() if trial.params != self.default][: self.definition.top]
        return {DEFAULT: self.default, **{trial.number: trial.params for trial in best}}

    def confirm_seeds(self) -> list[int]:
        """Training seeds that the search did not use."""
        first = self.definition.base["seed"] + self.definition.seeds
        return list(range(first, first + self.definition.confirm))

    def confirmations(self) -> dict[tuple[int, int], FrozenTrial]:
        """(candidate, seed) -> its finished training."""
        trials = self.confirmation.get_trials(deepcopy=False, states=DONE)
        return {(t.user_attrs["of"], t.user_attrs["seed"]): t for t in trials}

    def join(self) -> None:
        """Becomes a worker: its trials are its own for as long as this process lives."""
        self._lock_file.parent.mkdir(exist_ok=True)
        self._membership = _open_locked(self._lock_file, wait=True)

    def leave(self) -> None:
        """The end of a worker that has nothing left to do."""
        self._lock_file.unlink()
        os.close(self._membership)

    def take(self) -> tuple[optuna.Study, Trial] | None:
        """The next training for a worker; None when all are done. Waits while those of others may yet be left behind."""
        while True:
            with alone(self.folder):
                self._fail_what_was_left_behind()
                taken, busy = self._next()
            if taken is not None or not busy:
                return taken
            time.sleep(PAUSE)

    def _next(self) -> tuple[tuple[optuna.Study, Trial] | None, bool]:
        """A training to do, and whether there may be one later."""
        running = len(self.search.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
        if len(self.finished()) + running < self.wanted:
            return self._ask(self.search), True
        if running:
            return None, True
        if self._enqueue_confirmations():
            return self._ask(self.confirmation), True
        return None, bool(self.confirmation.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def _ask(self, study: optuna.Study) -> tuple[optuna.Study, Trial]:
        """The next trial of a study; one that waits, if there is one. What is sampled depends on the trials so far alone."""
        seeds = np.random.SeedSequence([self.definition.base["seed"], len(study.get_trials(deepcopy=False))])
        study.sampler = optuna.samplers.TPESampler(seed=int(seeds.generate_state(1)[0]))
        trial = study.ask(self.distributions)
        trial.set_user_attr("worker", self.name)
        return study, trial

    def _enqueue_confirmations(self) -> bool:
        """Puts what is still to be confirmed into the queue; whether something waits there."""
        trials = self.confirmation.get_trials(deepcopy=False)
        for number, params in self.candidates().items():
            for seed in self.confirm_seeds():
                same = [t.state for t in trials if t.user_attrs["of"] == number and t.user_attrs["seed"] == seed]
                if same.count(TrialState.FAIL) == len(same) < ATTEMPTS:
                    self.confirmation.enqueue_trial(params, user_attrs={"of": number, "seed": seed})
        return bool(self.confirmation.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _fail_what_was_left_behind(self) -> None:
        """Marks the running trials of processes that have ended as failed; those of the search are tried again."""
        for study in (self.search, self.confirmation):
            trials = study.get_trials(deepcopy=False)
            retried = {t.user_attrs.get("retry_of") for t in trials}
            for trial in trials:
                if trial.state != TrialState.RUNNING or self._is_alive(trial.user_attrs.get("worker")):
                    continue
                attempt = trial.user_attrs.get("attempt", 1)
                if study is self.search and trial.number not in retried and attempt < ATTEMPTS:
                    kept = {key: value for key, value in trial.user_attrs.items() if key == "default"}
                    again = {**kept, "attempt": attempt + 1, "retry_of": trial.number}
                    study.enqueue_trial(trial.params, user_attrs=again)
                study.tell(trial.number, state=TrialState.FAIL)

    def _is_alive(self, worker: str | None) -> bool:
        """Whether the process of that name lives. One without a name ended between taking a trial and signing it."""
        if worker is None:
            return False
        try:
            os.close(_open_locked(self.folder / "workers" / worker, wait=False))
        except BlockingIOError:
            return True
        return False
