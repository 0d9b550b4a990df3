"""The scales between two times, from which every solver's coefficients are made."""

from typing import NamedTuple

from diffjax.schedules import Schedule, expand
from diffjax.solvers.base import Span
from diffjax.typing import Array

__all__ = ["Transition", "transition"]


class Transition(NamedTuple):
    """Scales at the two ends of a step, shaped to broadcast against ``x``.

    No logarithm is taken, so a step to ``sigma_next = 0`` is finite, and so is its gradient.
    """

    alpha: Array
    sigma: Array
    alpha_next: Array
    sigma_next: Array

    @property
    def ratio(self) -> Array:
        """``e^{-h}``, ``h`` the step in half log SNR: ``alpha sigma_next / (alpha_next sigma)``."""
        return self.alpha * self.sigma_next / (self.alpha_next * self.sigma)

    @property
    def large_variance(self) -> Array:
        """``sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2``: the forward step's (beta of a chain)."""
        return self.sigma**2 * (1 - self.ratio**2)

    @property
    def small_variance(self) -> Array:
        """That of the posterior ``q(x_s | x_t, x_0)`` (beta tilde of a chain)."""
        return self.sigma_next**2 * (1 - self.ratio**2)

    def posterior_mean(self, x: Array, x0: Array) -> Array:
        """Mean of ``q(x_s | x_t, x_0)``: Ho et al. 2020, eq. (7), for any two times."""
        ratio = self.ratio
        return self.alpha_next * (1 - ratio**2) * x0 + self.sigma_next / self.sigma * ratio * x

    def along_x0(self, x: Array, x0: Array) -> Array:
        """Exact ODE step with ``x0`` held: ``(sigma_s/sigma_t) x + alpha_s (1 - e^{-h}) x0``."""
        decay = self.sigma_next / self.sigma
        return decay * x + (self.alpha_next - decay * self.alpha) * x0

    def along_eps(self, x: Array, eps: Array) -> Array:
        """Exact ODE step with ``eps`` held: ``(alpha_s/alpha_t) x - sigma_s (e^h - 1) eps``."""
        growth = self.alpha_next / self.alpha
        return growth * x + (self.sigma_next - growth * self.sigma) * eps


def transition(schedule: Schedule, span: Span, x: Array) -> Transition:
    """The scales at both ends of ``span``."""
    return Transition(
        *(
            expand(scale(t), x)
            for t in (span.t, span.t_next)
            for scale in (schedule.alpha, schedule.sigma)
        )
    )
