"""The rules, pure: no I/O, no clock, no logging. Each is a fold; `admission` is the specification,
`kernels` the same on columns.
"""
