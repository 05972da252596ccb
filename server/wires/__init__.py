"""The wire formats, one module each.

A wire reads requests and renders answers; methods it reaches through dispatch alone.
"""
