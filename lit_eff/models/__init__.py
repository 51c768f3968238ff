"""One early-exit transformer for the Llama/Qwen, GPT-2 and BERT families, in plain ``torch.nn``.

Start reading at ``transformer.py``. This package imports nothing by itself, so that ``models.config`` can be
read without torch.
"""
