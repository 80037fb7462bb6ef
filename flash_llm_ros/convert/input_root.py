"""Which inputs of a matrix occur together, in the form that rounding asks for."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# For what a short text does not show: of each input's mean square, and of the mean of all.
_OWN_RIDGE, _RIDGE = 1.0, 0.1


def input_root(inputs: Array) -> Array:
    """V, upper triangular float32 [d, d], of the covariance V V^T of inputs [tokens, d].

    The covariance is that of these inputs with its diagonal doubled, and a little more. Takes the
    memory of three such matrices.
    """
    covariance = inputs.T @ inputs
    covariance /= len(inputs)
    diagonal = covariance.reshape(-1)[::len(covariance) + 1]
    diagonal += _OWN_RIDGE * diagonal + (_RIDGE * diagonal.mean() or 1)
    lower = np.linalg.cholesky(covariance[::-1, ::-1])
    del covariance, diagonal
    return np.ascontiguousarray(lower[::-1, ::-1])
