"""Which storage nodes keep what: rendezvous hashing, replicas by popularity, repair, and the index of who holds what.

Nodes agree on a place without asking: ``rendezvous.py`` ranks them for a key by hashes alone. ``replicas.py`` says how
many of the first keep it, ``repair.py`` what has to be copied or dropped once members have changed, and ``balance.py``
whom to ask under load. What nodes really hold spreads by gossip (``scuttlebutt.py``) into an ``index.py``, which is
never quite up to date: those who do not answer are left out for a while (``silence.py``).
"""
