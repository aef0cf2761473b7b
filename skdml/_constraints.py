"""Validation of hyperparameters.

This is the only file that uses a private part of scikit-learn, for its wording of the errors: estimators and losses
declare ``_parameter_constraints`` and get "The 'tau' parameter of SoftTripleLoss must be a float in the range [0.0,
inf). Got -1 instead."
"""

from numbers import Integral, Real

from sklearn.utils._param_validation import HasMethods, Interval, StrOptions, validate_parameter_constraints

__all__ = [
    "FINITE",
    "FRACTION",
    "NON_NEGATIVE",
    "POSITIVE",
    "POSITIVE_INT",
    "HasMethods",
    "Interval",
    "StrOptions",
    "check_constraints",
]

FINITE = Interval(Real, None, None, closed="neither")
POSITIVE = Interval(Real, 0, None, closed="neither")
NON_NEGATIVE = Interval(Real, 0, None, closed="left")
FRACTION = Interval(Real, 0, 1, closed="neither")
POSITIVE_INT = Interval(Integral, 1, None, closed="left")


def check_constraints(owner, params):
    """Raise a ValueError that names the parameter, its value and what is allowed.

    Parameters
    ----------
    owner : object
        Its class's ``_parameter_constraints`` maps each name to a list of allowed types, ranges and constants.
    params : dict
        The values by name; names without a constraint are not checked.
    """
    constraints = type(owner)._parameter_constraints
    checked = {name: value for name, value in params.items() if name in constraints}
    validate_parameter_constraints(constraints, checked, caller_name=type(owner).__name__)
