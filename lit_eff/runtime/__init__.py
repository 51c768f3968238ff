"""Torch-free ground: bundle format, certificate, exit rules, samplers, decoding rounds, text engine."""
