"""Which of the things that were fetched are kept: cache policies, a cache bounded in bytes, and how far from the best.

A :class:`~node.caching.cache.Cache` is a state machine without I/O, clock or randomness. It counts bytes, pins and
wants that wait for room; a :class:`~node.caching.policy.Policy`, one file each, orders what is resident and says what
goes next. ``inflight.py`` has one fetch for concurrent wants, and forgets errors in time. What could have been hit at
best on the same accesses is ``belady.py``'s, and the difference ``regret.py``'s.
"""
