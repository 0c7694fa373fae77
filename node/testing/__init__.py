"""What the author of a protocol, mod or op tests it with.

::

    from node.testing import run_protocol

    def test_everybody_agrees():
        outcome = run_protocol(MyProtocol(MyProtocol.Config(rounds=50)), nodes=8)
        assert outcome.spread() < 1e-6
"""

from node.testing.checks import check_op, check_protocol
from node.testing.quadratic import Quadratic
from node.testing.simulate import Outcome, run_protocol

__all__ = ["Outcome", "Quadratic", "check_op", "check_protocol", "run_protocol"]
