"""Exit thresholds with a guarantee: p-values and procedures (torch-free), and the job that runs them."""
