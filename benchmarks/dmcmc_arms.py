"""The chains that dmcmc.py compares: the paper's, and excursions."""

import dataclasses
import functools

from diffjax import mcmc
from diffjax.schedules import EDM
from diffjax.solvers import multistep


class Langevin:
    """The paper's chain: unadjusted Langevin, the most likely level, the least noisy state."""

    title, select = "DLG", "least_noisy"

    def __init__(self, levels, logits, data_range):
        self.levels, self.logits, self.data_range = levels, logits, data_range

    def share(self, budget: int) -> int:
        """Calls of a budget that the chain should have."""
        return budget // 4

    def steps(self, left: int) -> tuple[int, int]:
        """Steps of the chain for a number of calls, and calls a step."""
        return left, 1

    def before(self, name: str):
        """The chain that an integrator's samples are drawn by."""
        del name
        return self

    def make(self, setting, calls):
        """The kernel, and how chains begin."""
        del calls
        eta = 0.5 * self.data_range**2

        def kernel(predict):
            return mcmc.denoising_langevin_gibbs(predict, eta, self.levels, self.logits)

        kar2 = mcmc.integrator("kar2", 37, low=setting.low, data_range=self.data_range)
        start = mcmc.Start(setting.high, kar2, 0.5 * self.data_range, ((kernel, 20),))
        return kernel, start


@dataclasses.dataclass(frozen=True, eq=False)
class Excursions:
    """Chains at low noise that go up for free and come down along DPM-Solver++, to a known level.

    The more calls they have to come down, the higher they go, and the less a sample tells of the
    next; and the more are left to denoise, the more noise may be left. Lengths in units of the
    range of the data.

    Attributes:
        data_range: The range of the data.
        climb: How high they go for each call.
        rise: Of the level where they live, for each call.
        level: The highest level where they live.
        part: Of a budget, for the chain.
        title: In the tables.
        select: Which state of a window is denoised.
    """

    data_range: float
    climb: float = 1.0
    rise: float = 0.05
    level: float = 0.25
    part: float = 0.5
    title: str = "DMCMC"
    select: str = "last"

    def share(self, budget: int) -> int:
        """Calls of a budget that the chain should have."""
        return max(int(self.part * (budget - 1)), 1)

    def steps(self, left: int) -> tuple[int, int]:
        """Steps of the chain for a number of calls, and calls a step."""
        return 1, left

    @functools.cache  # noqa: B019
    def before(self, name: str):
        """The chain that an integrator draws by: RK45's long steps bear less noise."""
        if name != "rk45":
            return self
        return dataclasses.replace(self, level=min(self.level, 0.15))

    def make(self, setting, calls):
        """The kernel, and how chains begin."""
        level = min(self.rise * calls, self.level) * self.data_range
        top = self.climb * calls * self.data_range
        move = mcmc.excursion(top, multistep(EDM()), calls, levels=(level, level))

        def kernel(predict):
            return mcmc.kernel(predict, move)

        begin = mcmc.integrator("dpm_solver_pp", 20, low=setting.low, data_range=self.data_range)
        return kernel, mcmc.Start(setting.high, begin, level, ((kernel, 5),))
