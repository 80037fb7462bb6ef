"""Checks of what callers hand to the NumPy core: ValueError says what would be right."""

import numpy as np


def check(right: object, field_name: str, value: object, wanted: str) -> None:
    if not right:
        raise ValueError(f'{field_name}: {value!r} is wrong, must be {wanted}')


def check_array(name: str, array: np.ndarray, dtype: type, shape: tuple[int, ...],
                writable: bool = False) -> None:
    if not (isinstance(array, np.ndarray) and array.dtype == dtype and array.shape == shape
            and array.flags.c_contiguous and (array.flags.writeable or not writable)):
        found = (f'{array.dtype} {list(array.shape)}' if isinstance(array, np.ndarray)
                 else type(array).__name__)
        raise ValueError(f'{name}: {found} is wrong, must be a C-contiguous '
                         f'{"writable " if writable else ""}{np.dtype(dtype).name} array '
                         f'{list(shape)}')


def check_pair(in_name: str, inputs: np.ndarray, width: int, out_name: str, out: np.ndarray,
               out_width: int) -> None:
    """Check inputs [S, width] and a writable out [S, out_width] with S of at least 1."""
    check(isinstance(inputs, np.ndarray) and inputs.ndim == 2 and len(inputs) >= 1, in_name,
          getattr(inputs, 'shape', inputs), f'a float32 array [S, {width}] with S >= 1')
    check_array(in_name, inputs, np.float32, (len(inputs), width))
    check_array(out_name, out, np.float32, (len(inputs), out_width), writable=True)
