"""A suite's worker whose training is fake, and which fails as its learning rate says."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from fake_loop import FakeTrainer
from perla.errors import UserError
from perla.runs import execute
from perla.suites import worker

BROKEN, CRASHING, MORTAL, SLOW = 0.5, 0.25, 0.125, 0.0625
"""Learning rates of a mistake, an exception, a death after the first interval, and patience."""


class FailingTrainer(FakeTrainer):
    def __init__(self, env, config, **rest):
        super().__init__(env, config, **rest)
        self.lr = config.lr
        self.evaluations = 0

    def train(self, states, until, updates):
        if self.lr == BROKEN:
            raise UserError("lr = 0.5: far too much")
        if self.lr == CRASHING:
            raise ZeroDivisionError("division by zero")
        begun = self.evaluations > 1
        mark = Path(sys.argv[1]).with_suffix(".died")
        if self.lr == MORTAL and begun and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.lr == SLOW and begun:
            time.sleep(0.2)
        return super().train(states, until, updates)

    def evaluate(self, states):
        self.evaluations += 1
        return super().evaluate(states)


def main(checkpoint_seconds=0.0):
    execute.Trainer = FailingTrainer
    execute.train = partial(execute.train, checkpoint_seconds=checkpoint_seconds)
    execute.resume = partial(execute.resume, checkpoint_seconds=checkpoint_seconds)
    sys.exit(worker.main())


if __name__ == "__main__":
    main()
