"""argparse with the toolkit's manners: a bad argument is one line that names the nearest option."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from lit_eff.errors import UserError, nearest
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.metrics import METRICS

UNCERTIFIED_HELP = (
    "exit thresholds set by hand, without any guarantee, for mode certified: "
    "0.8 for every exit, or one per exit as in never,0.8,0.6"
)
METRIC_HELP = "the certificate's metric, where it is a function of your own: naming it lets its code run"


def check_metric(certificate: Certificate, named: str | None) -> None:
    """A bundle may come from anyone: a function it names is imported only where its user names it too.

    Raises:
        UserError: for a function that ``--metric`` does not name, or any other name there.
    """
    metrics = [risk.metric for risk in certificate.risks]
    if named is not None and named not in metrics:
        raise UserError(f"--metric is {named!r}, and the certificate's metric is {' and '.join(metrics)!r}")
    for metric in metrics:
        if metric not in METRICS and metric != named:
            raise UserError(
                f"the certificate's metric is the function {metric}; if that is code you trust, allow it "
                f"with --metric {metric}"
            )


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are :class:`UserError`; options are never abbreviated."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Raises UserError for an unknown option or a value of the wrong type."""
        for word in argv:  # first, since a misspelt option may be a required one
            name = word.partition("=")[0]
            if name.startswith("--") and name not in self._option_string_actions:
                raise UserError(f"unknown option {name!r}{nearest(name, self._option_string_actions)}")
        options, unknown = self.parse_known_args(argv)
        if unknown:
            raise UserError(f"unexpected {unknown[0]!r}; see {self.prog} --help")
        return options

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")
