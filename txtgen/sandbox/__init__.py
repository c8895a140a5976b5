"""Chat templates of imported models: programs by strangers, rendered within bounds and kept away from all else.

jinja2's sandbox keeps a template from Python's insides, but not from eating all time and memory. So a rendering has
a number of units to spend (`budget`): each step costs one, each text and each list what its size demands. Steps are
counted by nodes that are put into the syntax tree (`metering`): every body that can run more than once begins by
paying for itself. Only listed kinds of nodes, filters, tests, methods and functions exist (`allowed`).
"""

from txtgen.sandbox.template import ChatTemplate

__all__ = ["ChatTemplate"]
