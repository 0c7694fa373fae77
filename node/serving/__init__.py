"""Serves a causal language model with many adapters in one batch, whose requests join and leave between steps.

``model`` ``keyvalues`` ``sampling`` ``writing`` ``engine`` compute; ``source`` ``residency`` bring adapters into slots
while others run; ``loop`` decides what each step does, and ``reply`` is what a client reads.
"""
