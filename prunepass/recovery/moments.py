"""Moments of rows that stream by: count, mean, variance, zeros; and the Gram matrix of what a layer reads."""

from __future__ import annotations

import numpy as np

from prunepass.recovery.threads import threads_for


class Moments:
    """Hold what is known of the channels of a value, in float64.

    Source
        Chan, Golub, LeVeque 1983, Algorithms for Computing the Sample Variance, eq. 2.1: blocks are merged by their
        means, so that nothing cancels where the mean is large.

    Shapes
        Everything is (groups, channels). zeros, positive: how many entries are 0, are above 0.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.spread = self.zeros = self.positive = np.zeros((1, 1))

    def add(self, block: np.ndarray) -> None:
        """Take in rows, (groups, n, channels)."""
        n = block.shape[1]
        if not n:
            return
        block = block.astype(np.float64)
        mean = block.mean(axis=1)
        self.zeros = self.zeros + (block == 0).sum(axis=1)
        self.positive = self.positive + (block > 0).sum(axis=1)
        step = mean - self.mean
        total = self.count + n
        block -= mean[:, None]
        self.spread = self.spread + np.square(block).sum(axis=1) + np.square(step) * (self.count * n / total)
        self.mean = self.mean + step * (n / total)
        self.count = total

    @property
    def variance(self) -> np.ndarray:
        """Mean squared distance from the mean."""
        return self.spread / max(1, self.count)

    @property
    def square(self) -> np.ndarray:
        """Mean square, the second moment about 0."""
        return self.variance + np.square(self.mean)

    @property
    def norm(self) -> np.ndarray:
        """Root of the mean square: the L2 norm over all rows, whatever their number."""
        return np.asarray(np.sqrt(self.square))

    @property
    def zero_share(self) -> np.ndarray:
        """Share of entries that are 0."""
        return self.zeros / max(1, self.count)

    @property
    def positive_share(self) -> np.ndarray:
        """Share of entries above 0."""
        return self.positive / max(1, self.count)


class Gram:
    """Hold means and covariances of the rows X of a layer and, where given, of targets Y; in float64.

    Shapes
        mean: (groups, features). target: (groups, outputs). xx: (groups, features, features). xy: (groups, features,
        outputs). xx and xy are sums about the means; `covariance` and `cross` divide by the count.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.target = np.zeros((1, 1))
        self.xx = self.xy = np.zeros((1, 1, 1))

    def add(self, x: np.ndarray, y: np.ndarray | None = None) -> None:
        """Take in rows, (groups, n, features) and (groups, n, outputs)."""
        n = x.shape[1]
        if not n:
            return
        x = x.astype(np.float64)
        y = np.zeros((*x.shape[:2], 0)) if y is None else y.astype(np.float64)
        if not self.count:
            self.target = np.zeros((y.shape[0], y.shape[2]))
            self.xy = np.zeros((x.shape[0], x.shape[2], y.shape[2]))
        total = self.count + n
        x_mean, y_mean = x.mean(axis=1), y.mean(axis=1)
        x_step, y_step = x_mean - self.mean, y_mean - self.target
        x -= x_mean[:, None]
        share, turned = self.count * n / total, x.transpose(0, 2, 1)
        with threads_for(x.shape[2]):
            self.xx = self.xx + turned @ x + x_step[:, :, None] * x_step[:, None] * share
            self.xy = self.xy + turned @ (y - y_mean[:, None]) + x_step[:, :, None] * y_step[:, None] * share
        self.mean, self.target = self.mean + x_step * (n / total), self.target + y_step * (n / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of the features."""
        return self.xx / max(1, self.count)

    @property
    def cross(self) -> np.ndarray:
        """Covariance of features and targets."""
        return self.xy / max(1, self.count)

    @property
    def second(self) -> np.ndarray:
        """Mean of x x^T: the Gram matrix over the number of rows."""
        return self.covariance + self.mean[:, :, None] * self.mean[:, None]
