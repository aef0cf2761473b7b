"""Training: from ``fit`` to the step, and back to a fitted estimator."""
