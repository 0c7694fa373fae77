"""Requests for inference: when they come, how long they are, which adapter they want, and how well they were served.

Everything here is a function of its arguments and a generator of random numbers; nothing knows a clock.
"""
