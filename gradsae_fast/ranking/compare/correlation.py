"""Pearson correlations of a few columns with all columns of another matrix, rows coming part by part.

Only sums are kept, so memory is one number for each pair of columns, whatever the number of rows. Columns are sparse:
their means are small against their spreads, so that differences of sums lose few digits; where they would (a spread
below 1e-7 of the mean) there is no correlation.

Letters: N rows of a part, K chosen columns of x, C columns of y.
"""

import numpy as np
import scipy.sparse

from gradsae_fast.records import Array

_NO_SPREAD = 1e-7  # as a share of the mean


class Correlation:
    """Sums of x, y, their squares and products over the rows seen so far, in float64."""

    def __init__(self, num_chosen: int, num_columns: int) -> None:
        self.num_rows = 0
        self._x_K, self._xx_K = np.zeros(num_chosen), np.zeros(num_chosen)
        self._y_C, self._yy_C = np.zeros(num_columns), np.zeros(num_columns)
        self._xy_KC = np.zeros((num_chosen, num_columns))

    def add(self, x_NK: scipy.sparse.csr_array, y_NC: scipy.sparse.csr_array) -> None:
        """Add N rows."""
        self.num_rows += x_NK.shape[0]
        for matrix, total, squares in ((x_NK, self._x_K, self._xx_K), (y_NC, self._y_C, self._yy_C)):
            total += matrix.sum(0)
            squares += matrix.power(2).sum(0)
        product = (x_NK.T @ y_NC).tocoo()
        self._xy_KC[product.coords] += product.data  # each pair of columns is there at most once

    def pearson(self) -> Array:
        """Return Pearson's r, float64 [K, C]; NaN where a column is (but for rounding) the same in all rows."""
        spread_K, spread_C = self._spread(self._x_K, self._xx_K), self._spread(self._y_C, self._yy_C)
        covariance_KC = self.num_rows * self._xy_KC - self._x_K[:, None] * self._y_C
        return np.clip(covariance_KC / spread_K[:, None] / spread_C, -1, 1)

    def _spread(self, total: Array, squares: Array) -> Array:
        variance = self.num_rows * squares - total**2
        usable = variance > (_NO_SPREAD * total) ** 2
        return np.sqrt(variance, out=np.full(len(total), np.nan), where=usable)
