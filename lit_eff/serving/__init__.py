"""OpenAI-compatible HTTP server over a bundle. Imports no torch."""
