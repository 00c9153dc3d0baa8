"""What the cache promises while servers die, networks swallow and processes stand still.

``node.py`` is one node in a process of its own, ``cluster.py`` starts and commands nodes, and
``checker.py`` judges what they wrote down.
"""
