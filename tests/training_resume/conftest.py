from tests.training.callbacks.corpus import text

__all__ = ["text"]
