"""Writes bundles: ONNX segments, safetensors, Hugging Face folders."""
