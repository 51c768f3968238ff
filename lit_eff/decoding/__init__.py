"""The torch engine: one sequence through a segment runner, and many at once for calibration."""
