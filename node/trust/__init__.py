"""Who belongs to a network, and how anybody can tell: certificates, invitations, revocations, proofs.

Every part is a state machine or a value: times are arguments, in seconds since 1970, and what is sent or written is the
caller's. Only :mod:`~node.trust.folder`, :mod:`~node.trust.ledger` and :mod:`~node.trust.audit` touch the disk.
"""
