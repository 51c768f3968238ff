"""lit_eff: from a transformer recipe to a served model, with guarantees."""

__version__ = "0.1.0"
