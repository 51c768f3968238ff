"""The decode step: layers of a Llama-type transformer on a few rows, in one launch.

`reference` is the plain form, `kernel` the launch's program over `phases` and `attention`, with `product`
inside and `barrier` between; `plan` says how work is cut, `call` makes launches (over `arguments`).
"""
