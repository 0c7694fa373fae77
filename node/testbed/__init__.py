"""A test bed on which selection can be judged by results: a tiny model, and adapters that each spell numbers in one
language. Who has chosen the right adapter gets the right words, and nobody else does.
"""
