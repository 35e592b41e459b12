"""A custom environment in NumPy: two walkers meet on a narrow bridge.

Each starts at one end of a bridge of `LENGTH` cells and must reach the other end. They can pass
each other only in the middle, while one of them waits in the bay.
"""

import numpy as np

from perla.envs.protocol import Observation, Spec, TimeStep

LENGTH, LIMIT = 5, 20
BACK, FORTH, ASIDE = range(3)


class Crossing:
    spec = Spec(
        id="crossing:make",
        agents=2,
        obs=4,  # own cell, own bay, the other's cell, the other's bay
        state=4,
        actions=(3, 3),
        limit=LIMIT,
        reward="common",
        rules={"length": LENGTH},
    )

    def reset(self, seed):
        self.random = np.random.default_rng(seed)
        self.place = np.array([0, LENGTH - 1])
        self.aside = np.zeros(2, bool)
        self.time = 0
        return self.see()

    def step(self, action):
        self.time += 1
        for walker in self.random.permutation(2):  # the walkers move in random order
            self.walk(walker, action[walker])
        home = bool((self.place == [LENGTH - 1, 0]).all())
        seen = self.see()
        reward = np.full(2, 1.0 if home else -0.01, np.float32)
        return TimeStep(seen, reward, home, self.time == LIMIT and not home, seen)

    def walk(self, walker, action):
        middle = self.place[walker] == LENGTH // 2
        if action == ASIDE:
            self.aside[walker] |= middle
            return
        forward = 1 - 2 * walker
        goal = self.place[walker] + (forward if action == FORTH else -forward)
        blocked = goal == self.place[1 - walker] and not self.aside[1 - walker]
        if 0 <= goal < LENGTH and not blocked:
            self.place[walker], self.aside[walker] = goal, False

    def see(self):
        each = np.stack([self.place / LENGTH, self.aside], -1).astype(np.float32)
        obs = np.stack([each.ravel(), each[::-1].ravel()])
        return Observation(obs, each.ravel(), np.ones((2, 3), bool))

    def render(self):
        picture = np.full((3, LENGTH, 3), 255, np.uint8)
        for walker, colour in enumerate(([0, 114, 178], [230, 159, 0])):
            picture[0 if self.aside[walker] else 1, self.place[walker]] = colour
        return picture.repeat(24, 0).repeat(24, 1)

    def close(self):
        pass


def make():
    """Make the environment `crossing:make`. Every worker process calls it, once per environment."""
    return Crossing()


def main(steps=40_000):
    """Train MAPPO and return the evaluations' returns."""
    import perla

    result = perla.train("crossing:make", "mappo", steps=steps, num_evaluations=4, eval_episodes=8,
                         absolute_episodes=8)  # fmt: skip
    return [record["return"] for record in result.records]


if __name__ == "__main__":  # worker processes import this file, too
    print(main())
