"""Receiving an object layer by layer from several sources, so that its first layers are used while others still come.

``layout.py`` numbers the chunks of all layers in the order of use; ``receiver.py`` says which chunk to ask of whom,
when to ask again elsewhere, and when a layer is there; ``assembly.py`` checks and keeps the bytes, where there are any:
a simulation has sizes alone. ``recurrence.py`` is what streaming is worth.
"""
