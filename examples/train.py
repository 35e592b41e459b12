"""Does policy embedding help on this map? Train IPPO with and without, and compare."""

import perla

ENV = "lbf:Foraging-5x5-2p-2f-v2"

for algo in ("ippo", "perla-ippo"):
    result = perla.train(ENV, algo, steps=100_000, seeds=3)
    over_seeds = result.summary["iqm"]
    print(f"{algo:<12} final {over_seeds['final']:.3f}  absolute {over_seeds['absolute']:.3f}")
