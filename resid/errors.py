"""Named errors. Every one is a `ValueError` whose text gives the argument, its value, the condition and a way out."""


class ResidError(ValueError):
    """Base of every error that `resid` raises on purpose."""


class ShapeError(ResidError):
    """An array does not have the shape that the argument needs."""


class NotFiniteError(ResidError):
    """An array holds NaN or infinity."""


class DeterminantError(ResidError):
    """A matrix must have a positive determinant, and has not."""


class DepthError(ResidError):
    """A depth is not an integer of the range in which the statement holds."""


class CovarianceError(ResidError):
    """A covariance is not symmetric positive semidefinite."""


class OptionError(ResidError):
    """A named option is none of those that exist."""


class SampleConflictError(ResidError):
    """Two samples are the same point and have different labels: no function maps both to their label."""


class MarginError(ResidError):
    """Points cannot be told apart by the half-spaces that a construction asks for, or not in floating point."""


class ConvergenceError(ResidError):
    """An iteration did not reach its tolerance, or cannot on this input, a matrix without full rank for instance."""


class SizeError(ResidError):
    """A size is outside the range in which the statement holds, or too large to be handled that way."""


class InterruptedRunError(ResidError):
    """Something outside a run has failed, and it may be that the same again succeeds."""
