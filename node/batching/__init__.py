"""Which requests run in the next step, and on which node: state machines of a serving loop, without I/O or clock.

``queues`` says what waits and what is fetched for it, ``admission`` how many fit, ``fairness`` whose turn it is,
``scheduler`` puts these together, ``routing`` chooses among nodes.
"""
