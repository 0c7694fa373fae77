"""The HTTP interface of a serving node, as OpenAI's and vLLM's clients speak it.

``bodies`` reads what clients send, ``refusals`` is what they are told where something is wrong, ``answers`` what they
get; ``generation`` ``administration`` are the routes, ``figures`` the metrics, ``server`` puts all of it on a socket.
"""
