"""scikit-learn's callbacks (``set_callbacks``, from 1.9 on) told of the epochs, through a callback of skorch."""

from skorch.callbacks import Callback

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn < 1.9 has no callbacks

    class CallbackSupportMixin:
        pass

    def with_callbacks(method):
        return method


class EpochTasks(Callback):
    """A task of scikit-learn's callbacks for every epoch.

    Parameters
    ----------
    estimator : BaseEmbedder
    context : sklearn.callback.CallbackContext
        Of the fit.
    arguments : dict
        What the callbacks are told of the data: X, y, metadata.
    fitted : callable
        Returns, for skorch's history so far, the attributes that make ``estimator`` a fitted one: copies.
    """

    def __init__(self, estimator, context, arguments, fitted):
        self.estimator = estimator
        self.context = context
        self.arguments = arguments
        self.fitted = fitted

    def on_epoch_begin(self, net, **kwargs):
        self.task_ = self.context.subcontext(task_name="epoch")
        self.task_.call_on_fit_task_begin(estimator=self.estimator, **self.arguments)

    def on_epoch_end(self, net, **kwargs):
        stop = self.task_.call_on_fit_task_end(
            estimator=self.estimator,
            **self.arguments,
            reconstruction_attributes=lambda: self.fitted(net.history),
        )
        if stop:
            raise KeyboardInterrupt  # skorch's sign
