"""Every error that Starling raises, in one tree.

::

    StarlingError
    ├── ConfigError             the input is wrong: file, key, what is allowed   (exit code 2)
    ├── ProtocolError           a protocol broke the rules of its Context        (exit code 3, like all below)
    ├── TransportError          the network between nodes
    │   ├── Unreachable         a peer is gone and is needed
    │   ├── DeadlineExceeded    no answer in time
    │   ├── BadSignature        an identity, card or key that does not verify
    │   ├── FrameTooLarge       a length beyond its bound, seen before anything was allocated
    │   ├── BadFrame            bytes that are not a message of this protocol version
    │   └── NotAMember          a stranger
    ├── ComputeError            an operation on values failed
    ├── PrivacyError            a guarantee that cannot be given
    │   └── BudgetSpent         the next step would cost more privacy than is left
    ├── StoreError              what is kept on disk
    │   ├── Missing
    │   └── Corrupt
    └── SimulationError         the virtual world
        ├── Deadlock            every task waits and nothing is scheduled
        ├── Livelock            tasks run for ever without time passing
        └── Nondeterminism      two runs of one experiment differ

Each message says what was tried and what to do next, in one line; ``Deadlock`` adds a line for each waiting node.
"""


class StarlingError(Exception):
    """Root of the tree: catch this to catch everything that Starling raises on purpose."""


class ConfigError(StarlingError):
    """The input is wrong; the message names the file, the key and what is allowed."""


class ProtocolError(StarlingError):
    """A protocol, mod or op broke the rules of the seam it is written against."""


class TransportError(StarlingError):
    """The network between two nodes failed."""


class Unreachable(TransportError):
    """A peer that is needed has gone or never came."""


class DeadlineExceeded(TransportError):
    """An answer did not come in time."""


class BadSignature(TransportError):
    """An identity, a card or a key does not verify."""


class FrameTooLarge(TransportError):
    """A declared length is beyond its bound; nothing was allocated for it."""


class BadFrame(TransportError):
    """Bytes that are no message: truncated, of an unknown version, or with lengths that do not add up."""


class NotAMember(TransportError):
    """A key that this network does not know."""


class ComputeError(StarlingError):
    """An operation on values failed; the message names the op and the node."""


class PrivacyError(StarlingError):
    """A privacy guarantee cannot be given."""


class BudgetSpent(PrivacyError):
    """The next step would cost more privacy than the budget has left."""


class StoreError(StarlingError):
    """What is kept on disk is not there or not whole."""


class Missing(StoreError):
    """Nothing is kept under that name."""


class Corrupt(StoreError):
    """What is kept does not match its hash or its format."""


class SimulationError(StarlingError):
    """Something that cannot happen, or must not be done, under virtual time."""


class Deadlock(SimulationError):
    """Every task waits and nothing is scheduled that could wake one."""


class Livelock(SimulationError):
    """Tasks keep waking one another without time passing."""


class Nondeterminism(SimulationError):
    """Two runs of the same experiment differ; the message names the first differing event."""
