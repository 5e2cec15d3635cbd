"""A score as a sum of functions, one a setting: the additive Gaussian process, kept to first order.

    y = c + sum_j f_j(x_j) + e,   f_j ~ GP(0, w_j k_j),   e ~ N(0, s^2)

After Duvenaud, Nickisch and Rasmussen (2011). k_j is a squared exponential along the setting's range (log
where it is searched so), equality for values to choose from, and 0 wherever the setting is idle, so that a
conditional setting speaks only of trials that have it. The weights w_j and s^2 maximise the marginal
likelihood less BIC's price of each setting that has a weight: one that explains nothing gets none.

Deviations: length scales are fixed, as a dozen trials cannot tell them; variances are those of the posterior
mean, and kernels of ranges are kept to 1e-4 of their largest eigenvalue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.search.draw import RANGE_WEIGHT
from pipeline.search.records import Dimension, Trial, Value
from pipeline.search.scales import Scale

LENGTH = 0.5
"""Of the squared exponential, in shares of the range: one bend, no ripples."""
WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0)
"""Variance of a component, where the scores' own is 1."""
NOISES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
GRID = 21
"""Places along a range at which its component is known."""

Matrix = NDArray[np.float64]


class Axis:
    """One setting as features, whose products are its kernel: of the trials, and of places along it."""

    def __init__(self, scale: Scale, trials: Sequence[Trial]) -> None:
        self.name = scale.dimension.name
        values = [trial.settings.get(self.name) for trial in trials]
        self.of_trials = np.array([_features(scale, value) for value in values])
        self.active = self.of_trials.any(1)
        self.places: list[Value] = list(scale.dimension.values)
        mass = [1.0] * len(self.places)
        if scale.dimension.has_range:
            self.places += _along(scale.dimension)
            mass += [RANGE_WEIGHT / GRID] * GRID
        self.mass = np.array(mass) / sum(mass)
        self.of_places = np.array([_features(scale, place) for place in self.places])

    @property
    def varies(self) -> bool:
        """False where no two trials differ in it, so that nothing can be told."""
        return bool(np.ptp(self.of_trials, 0).max() > 0.0)


def _features(scale: Scale, value: Value | None) -> list[float]:
    """One for each value to choose, then those of the range; all 0 where the setting is idle."""
    choices, waves = len(scale.dimension.values), _WAVES.shape[1] if scale.dimension.has_range else 0
    features = [0.0] * (choices + waves)
    choice = None if value is None else scale.choice(value)
    share = None if value is None else scale.share_of_range(value)
    if choice is not None:
        features[choice] = 1.0
    elif share is not None:
        features[choices:] = (_squared_exponential(np.array([share]), _SHARES) @ _WAVES)[0].tolist()
    return features


def _squared_exponential(left: Matrix, right: Matrix) -> Matrix:
    kernel: Matrix = np.exp(-0.5 * ((left[:, None] - right[None, :]) / LENGTH) ** 2)
    return kernel


def _waves() -> Matrix:
    """Nystroem's map: k(x, grid) times this gives features whose products are k, to 1e-4 of its largest."""
    sizes, shapes = np.linalg.eigh(_squared_exponential(_SHARES, _SHARES))
    kept = sizes > 1e-4 * sizes[-1]
    waves: Matrix = shapes[:, kept] / np.sqrt(sizes[kept])
    return waves


_SHARES: Matrix = np.linspace(0.0, 1.0, GRID)
_WAVES = _waves()


def _along(dimension: Dimension) -> list[Value]:
    assert dimension.low is not None
    assert dimension.high is not None
    if dimension.log:
        low, high = math.log(dimension.low), math.log(dimension.high)
        return [float(number) for number in np.exp(low + _SHARES * (high - low))]
    return [float(number) for number in dimension.low + _SHARES * (dimension.high - dimension.low)]


class Model:
    """The features of all settings, and how they go together: what fits to any scores need of the trials."""

    def __init__(self, axes: Sequence[Axis]) -> None:
        self.axes = axes
        self.num_trials = len(axes[0].of_trials)
        features = np.hstack([np.ones((self.num_trials, 1)), *(axis.of_trials for axis in axes)])
        self.features, self.gram = features, features.T @ features
        widths = [1, *(axis.of_trials.shape[1] for axis in axes)]
        self.axis_of_feature = np.repeat(np.arange(-1, len(axes)), widths)
        """Number of the axis, -1 of the constant."""

    def fitted(self, scores: Matrix) -> Fit:
        """The weights that explain the scores best, by ascent along one of them at a time."""
        best = Fit(self, scores, [0.0] * len(self.axes), 1.0)
        for _ in range(10):
            before = best.likelihood
            for number, axis in enumerate(self.axes):
                if axis.varies:
                    tries = [(w, n) for w in WEIGHTS for n in _near(best.noise)]
                    best = max((best.with_weight(number, w, n) for w, n in tries), key=_likelihood)
            best = max((Fit(self, scores, best.weights, noise) for noise in NOISES), key=_likelihood)
            if best.likelihood <= before + 1e-9:
                break
        return best


class Fit:
    """The model with its weights; the scores have mean 0 and variance 1.

    Likelihood and mean by Woodbury's identity, so that all matrices are as small as the features of the
    settings that have a weight: threads of a BLAS, which large ones start, would take cores from trials.
    """

    def __init__(self, model: Model, scores: Matrix, weights: Sequence[float], noise: float) -> None:
        self._model, self._scores, self.weights, self.noise = model, scores, list(weights), noise
        self._scales = np.sqrt(np.array([*weights, 1.0]))[
            model.axis_of_feature
        ]  # -1 is the last: the constant
        self._used = np.flatnonzero(self._scales)
        scales = self._scales[self._used]
        inner = scales[:, None] * model.gram[np.ix_(self._used, self._used)] * scales[None, :]
        self._factor = np.linalg.cholesky(inner + noise * np.eye(len(scales)))
        self._white = np.linalg.solve(self._factor, scales * (model.features[:, self._used].T @ scores))
        num = model.num_trials
        fit = (float(scores @ scores) - float(self._white @ self._white)) / noise
        size = 2.0 * float(np.log(np.diag(self._factor)).sum()) + (num - len(scales)) * math.log(noise)
        price = math.log(num) * sum(weight > 0.0 for weight in weights)
        self.likelihood = -0.5 * (fit + size + price)

    def with_weight(self, number: int, weight: float, noise: float) -> Fit:
        """The fit with one weight, and the noise, changed."""
        weights = [*self.weights[:number], weight, *self.weights[number + 1 :]]
        return Fit(self._model, self._scores, weights, noise)

    def shares(self) -> list[float]:
        """Of the variance over the space, for each setting in turn."""
        variances = [self._variance(number) for number in range(len(self.weights))]
        whole = sum(variances) + self.noise
        return [variance / whole for variance in variances]

    def effect(self, number: int, spread: float) -> tuple[tuple[Value, float], ...]:
        """What each place of the axis adds, in units of the score; nothing for a setting without weight."""
        if not self.weights[number]:
            return ()
        axis, slopes = self._model.axes[number], self._slopes(number)
        mean = float((axis.of_trials[axis.active] @ slopes).mean())
        added = (axis.of_places @ slopes - mean) * spread
        return tuple(zip(axis.places, added.tolist(), strict=True))

    def _slopes(self, number: int) -> Matrix:
        """What each feature of the axis adds."""
        slopes = np.zeros(len(self._scales))
        slopes[self._used] = self._scales[self._used] * np.linalg.solve(self._factor.T, self._white)
        found: Matrix = slopes[self._model.axis_of_feature == number]
        return found

    def _variance(self, number: int) -> float:
        """Of the component over the space, 0 where the setting is idle."""
        if not self.weights[number]:
            return 0.0
        axis = self._model.axes[number]
        component, active = axis.of_places @ self._slopes(number), float(axis.active.mean())
        mean = active * float(axis.mass @ component)
        return active * float(axis.mass @ component**2) - mean**2


def _likelihood(fit: Fit) -> float:
    return fit.likelihood


def _near(noise: float) -> Sequence[float]:
    """The noise and its neighbours: a weight that rises takes from it."""
    place = NOISES.index(noise)
    return NOISES[max(place - 1, 0) : place + 2]
